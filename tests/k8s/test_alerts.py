"""The alerts: read by Prometheus' own tool, which also plays every one of them through, firing and silent."""

import re
from pathlib import Path

import pytest
import yaml

from services.cli import app
from services.metric_catalog import families
from tests.k8s.alert_cases import CASES, IDLE, MINUTES, WELL, Series
from tests.k8s.rendering import ROOT
from tests.k8s.test_agreement import is_setting
from tests.prometheus import needs_prometheus, promtool, rule_groups

ALERTS = {rule["alert"]: rule for group in rule_groups() for rule in group["rules"]}
RUNBOOKS = (ROOT / "docs" / "operations.md").read_text().split("\n## Alerts\n")[1].split("\n## ")[0]


@pytest.fixture(scope="module")
def groups(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rules' groups by themselves, as Prometheus reads them."""
    path = tmp_path_factory.mktemp("rules") / "groups.yaml"
    path.write_text(yaml.safe_dump({"groups": rule_groups()}))
    return path


def installation(job: str, changed: Series) -> list[dict[str, str]]:
    """What one installation tells, in the words of promtool."""
    return [
        {"series": series.replace("{", f'{{job="{job}",', 1).replace(",}", "}"), "values": values}
        for series, values in {**WELL, **changed}.items()
    ]


def plan(path: Path, installations: dict[str, Series], firing: dict[str, str]) -> str:
    """Write a test of promtool: installations by name side by side; which alert fires in which, and no other does."""
    series = [
        one for job, changed in installations.items() for one in installation(f"{job}/headrace", changed)
    ]
    expected = [
        {"labels": f'{{alertname="{alert}", job="{job}/headrace"}}', "value": 1}
        for job, alert in firing.items()
    ]
    question = {
        "expr": 'count by (alertname, job) (ALERTS{alertstate="firing"})',
        "eval_time": f"{MINUTES}m",
        "exp_samples": expected,
    }
    test = {"interval": "1m", "input_series": series, "promql_expr_test": [question]}
    path.write_text(
        yaml.safe_dump({"rule_files": ["groups.yaml"], "evaluation_interval": "1m", "tests": [test]})
    )
    return str(path)


@needs_prometheus
def test_prometheus_reads_the_rules(groups):
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", str(groups))


@needs_prometheus
def test_every_alert_fires_alone_when_it_should_and_not_when_it_should_not(groups):
    installations = {"well": {}, "idle": IDLE}
    installations |= {f"{alert}-fires": case.fires for alert, case in CASES.items()}
    installations |= {f"{alert}-is-silent": case.silent for alert, case in CASES.items()}
    firing = {f"{alert}-fires": alert for alert in CASES}
    promtool("test", "rules", plan(groups.with_name("cases.yaml"), installations, firing))


@needs_prometheus
def test_an_alert_that_does_not_fire_as_expected_is_seen(groups):
    wrong = {"wrong": CASES["HeadraceErrors"].silent}
    with pytest.raises(AssertionError, match="HeadraceErrors"):
        promtool("test", "rules", plan(groups.with_name("wrong.yaml"), wrong, {"wrong": "HeadraceErrors"}))


@needs_prometheus
def test_a_prometheus_that_was_never_told_of_headrace_says_so(groups):
    question = {
        "expr": 'count by (alertname) (ALERTS{alertstate="firing"})',
        "eval_time": "10m",
        "exp_samples": [{"labels": '{alertname="HeadraceExporterGone"}', "value": 1}],
    }
    path = groups.with_name("nothing.yaml")
    path.write_text(
        yaml.safe_dump({"rule_files": ["groups.yaml"], "tests": [{"promql_expr_test": [question]}]})
    )
    promtool("test", "rules", str(path))


def test_every_alert_has_its_scenarios():
    assert CASES.keys() == ALERTS.keys()
    for name, case in CASES.items():
        assert case.fires != case.silent, name


def test_rules_and_scenarios_ask_what_the_catalogue_has():
    known = {family.name: family for family in families()}
    every = {*WELL, *IDLE} | {s for case in CASES.values() for s in {**case.fires, **case.silent}}
    for series in every:
        name, labels = re.fullmatch(r"(\w+)\{(.*)\}", series).groups()
        if name != "up":
            family = known[re.sub("_(bucket|count)$", "", name) if name not in known else name]
            assert set(re.findall(r'(\w+)="', labels)) - {"le"} == set(family.labels), series
    for alert, rule in ALERTS.items():
        asked = set(re.findall(r"headrace_[a-z0-9_]+", rule["expr"]))
        assert asked or alert == "HeadraceExporterGone"
        for name in asked:
            family = known.get(name) or known[re.sub("_(bucket|count|sum)$", "", name)]
            assert name == family.name or family.kind == "histogram", name
        for matched in re.findall(r"(headrace_[a-z0-9_]+)\{([^}]*)\}", rule["expr"]):
            family = known.get(matched[0]) or known[re.sub("_(bucket|count|sum)$", "", matched[0])]
            assert set(re.findall(r"(\w+)=", matched[1])) <= set(family.labels), rule["expr"]


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_explained(alert):
    annotations = ALERTS[alert]["annotations"]
    assert annotations["runbook"] == f"docs/operations.md#{alert.lower()}"
    assert annotations["summary"]
    assert annotations["description"].endswith(".")
    assert ALERTS[alert]["labels"]["severity"] in ("critical", "warning")
    sections = RUNBOOKS.split("\n#### ")
    [text] = [section for section in sections if section.startswith(f"{alert}\n")]
    for part in ("Means:", "Check:", "Do:"):
        assert f"**{part}**" in text, part


def test_no_alert_is_explained_that_is_not_there():
    assert set(re.findall(r"^#### (\w+)$", RUNBOOKS, re.MULTILINE)) == ALERTS.keys()


def test_runbooks_name_settings_and_commands_that_exist():
    settings = re.findall(r"`((?:streaming|serving|training|kafka|metrics)\.[a-z_.]+)`", RUNBOOKS)
    assert len(settings) > 5
    for setting in settings:
        assert is_setting(f"HEADRACE_{setting.upper().replace('.', '__')}"), setting
    commands = re.findall(r"`headrace ([a-z]+)((?: [a-z]+)?)", RUNBOOKS)
    assert len(commands) > 5
    groups = {group.name: group.typer_instance for group in app.registered_groups}
    for command, sub in commands:
        below = {c.name or c.callback.__name__ for c in groups.get(command, app).registered_commands}
        assert (sub.strip() if command in groups else command) in below, f"headrace {command}{sub}"
