"""Settings: one tree from file and environment, and errors a person can act on."""

from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from services.cli import app
from services.settings import Settings, SettingsError, load_settings, make_settings, to_toml


def test_the_environment_wins_over_the_file(tmp_path, monkeypatch):
    file = tmp_path / "headrace.toml"
    file.write_text("[streaming.windows]\nlength_s = 60\nlateness_s = 5\n")
    monkeypatch.setenv("HEADRACE_STREAMING__WINDOWS__LENGTH_S", "90")
    windows = load_settings(file).streaming.windows
    assert (windows.length_s, windows.lateness_s) == (90, 5)


def test_kafka_bootstrap_servers_of_the_environment_is_taken(monkeypatch):
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "kafka:9092")
    assert make_settings({}).kafka.bootstrap_servers == "kafka:9092"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (
            "[streaming.windows]\nlength_s = 0",
            r"streaming\.windows\.length_s: .*greater than or equal to 1, got 0",
        ),
        (
            "[kafka]\nbootstrap_server = 'x'",
            r"kafka\.bootstrap_server: no such setting; did you mean kafka\.bootstrap_servers",
        ),
        ("[serving]\nport = 'abc'", r"serving\.port: .*valid integer.* got 'abc'"),
        ("[streaming]\nevent_types = ['a', 'a']", r"streaming: .*event_types must be distinct"),
        (
            "[kafka]\nsecurity_protocol = 'SASL_SSL'",
            r"kafka: .*needs sasl_mechanism, sasl_username and sasl_password",
        ),
        (
            "[serving]\nexclude_seen = false",
            r"together: serving\.exclude_seen must be true .* set training\.model\.repeats to 'copied'",
        ),
        (
            "[training.gate]\nunseen_only = false",
            r"training: gate\.unseen_only must be true .* set model\.repeats to 'copied'",
        ),
        ("[training.deepspeed]\nstage = 4", r"training\.deepspeed\.stage: .*got 4"),
        ("nonsense", "not valid TOML"),
    ],
)
def test_a_wrong_setting_is_refused_with_path_bound_and_value(tmp_path, text, complaint):
    file = tmp_path / "headrace.toml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=complaint):
        load_settings(file)


def test_a_secret_never_shows(tmp_path):
    secret = "hunter2-hunter2"
    settings = make_settings({"kafka": {"sasl_password": secret}})
    assert secret not in repr(settings) + settings.model_dump_json()
    with pytest.raises(SettingsError) as caught:
        make_settings({"kafka": {"sasl_password": secret, "security_protocol": "SASL_SSL"}})
    assert secret not in str(caught.value)


def test_every_line_of_the_example_is_a_valid_setting(tmp_path):
    lines = []
    for line in to_toml(Settings()).splitlines():
        name, sign, value = line.removeprefix("# ").partition(" = ")
        lines.append(
            f"{name} = {value}" if sign and name.isidentifier() and "(not set)" not in value else line
        )
    file = tmp_path / "headrace.toml"
    file.write_text("\n".join(lines))
    assert sum("=" in line and not line.startswith("#") for line in lines) > 60
    assert load_settings(file) == Settings()


def test_the_command_line_teaches():
    runner = CliRunner()
    assert "headrace demo" in runner.invoke(app, ["--help"]).output
    assert "[streaming.windows]" in runner.invoke(app, ["config", "--example"]).output
    missing = runner.invoke(app, ["up", "--settings", "/nowhere.toml"])
    assert missing.exit_code == 2


def test_help_loads_nothing_heavy():
    import subprocess
    import sys

    heavy = ("torch", "ray", "pyarrow")
    code = f"import sys, services.cli, services.settings; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_command_says_its_version():
    assert CliRunner().invoke(app, ["--version"]).output.strip() == f"headrace {version('headrace')}"
