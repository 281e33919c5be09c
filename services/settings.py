"""All settings of Headrace as one tree: one TOML file, overridden by the environment.

`HEADRACE_STREAMING__WINDOWS__LENGTH_S=60` sets `streaming.windows.length_s`. A wrong or unknown setting is refused
at start with its path, the bound and the value that was seen. Importing this loads no torch.
"""

import os
import tomllib
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from services.metrics_config import MetricsSettings
from serving.config import ServingSettings
from streaming.config import KafkaSettings, StreamingSettings
from streaming.logs import LogSettings
from training.config import TrainingSettings


class SettingsError(Exception):
    """A setting is wrong; the message says which, what was expected and what was seen."""


class Settings(BaseSettings):
    """The whole tree; immutable."""

    model_config = SettingsConfigDict(
        env_prefix="HEADRACE_",
        env_nested_delimiter="__",
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
    )

    data_dir: Path = Field(Path(".headrace"), description="everything Headrace stores, on a disk of its own")
    kafka: KafkaSettings = KafkaSettings()
    streaming: StreamingSettings = StreamingSettings()
    training: TrainingSettings = TrainingSettings()
    serving: ServingSettings = ServingSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="after")
    def _what_is_shown_is_learned(self) -> "Settings":
        if self.training.model.repeats == "excluded" and not self.serving.exclude_seen:
            raise ValueError(
                "serving.exclude_seen must be true with training.model.repeats = 'excluded', which learns nothing of "
                "items that a user had before; got exclude_seen = false; set training.model.repeats to 'copied'"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (which arrives as initial values)."""
        return env_settings, init_settings


def load_settings(path: Path | None = None) -> Settings:
    """Read settings from a TOML file and the environment.

    Args:
        path: the file; None: `headrace.toml` in the current folder where there is one, else defaults.

    Raises:
        SettingsError: the file is missing or no TOML, or a setting is wrong or unknown.
    """
    if path is None and Path("headrace.toml").is_file():
        path = Path("headrace.toml")
    return make_settings(_read(path) if path else {}, source=str(path or "the environment"))


def make_settings(values: dict[str, Any], source: str = "settings") -> Settings:
    """Build settings from plain values and the environment.

    Raises:
        SettingsError: a setting is wrong or unknown.
    """
    try:
        settings = Settings(**values)
    except ValidationError as error:
        raise SettingsError(_explain(error, source)) from None
    bootstrap = os.environ.get("KAFKA_BOOTSTRAP_SERVERS")
    if bootstrap and "HEADRACE_KAFKA__BOOTSTRAP_SERVERS" not in os.environ:
        kafka = settings.kafka.model_copy(update={"bootstrap_servers": bootstrap})
        settings = settings.model_copy(update={"kafka": kafka})
    return settings


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SettingsError(
            f"no settings file at {path}; `headrace config --example > {path}` writes one"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} is not valid TOML: {error}") from None


def _explain(error: ValidationError, source: str) -> str:
    lines = [f"{source}: {error.error_count()} wrong setting{'s' * (error.error_count() > 1)}"]
    for problem in error.errors(include_url=False):
        path = ".".join(str(step) for step in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(f"  {path}: no such setting{_nearest(path)}")
        else:
            said = problem["msg"].removeprefix("Value error, ")
            lines.append(f"  {path or 'together'}: {said}{_seen(path, problem)}")
    return "\n".join(lines)


def _seen(path: str, problem: Any) -> str:
    secret = any(word in path for word in ("password", "key", "secret", "token"))
    value = problem.get("input")
    if secret or isinstance(value, dict):
        return ""
    return f", got {value!r}"


def _nearest(path: str) -> str:
    import difflib

    *parents, leaf = path.split(".")
    model: Any = Settings
    for parent in parents:
        if not parent.isdecimal():  # an entry of a list: what stands in it was found with the list
            model = model.model_fields[parent].annotation
            model = get_args(model)[0] if get_origin(model) is tuple else model
    close = difflib.get_close_matches(leaf, model.model_fields, n=1, cutoff=0.5)
    known = ", ".join(model.model_fields)
    return f"; did you mean {'.'.join([*parents, close[0]])}?" if close else f"; known here: {known}"


def to_toml(settings: Settings) -> str:
    """Every setting with its default and its meaning as a comment: the example file."""
    lines = [
        "# Headrace settings. Each line shows the default; uncomment what you change.",
        "# The environment overrides the file: HEADRACE_STREAMING__WINDOWS__LENGTH_S=60.",
        "",
    ]
    _section(settings, [], lines)
    return "\n".join(lines) + "\n"


def _section(section: Any, path: list[str], lines: list[str], *, of_list: bool = False) -> None:
    fields = type(section).model_fields
    plain = [name for name in fields if not _sections(getattr(section, name))]
    if path:
        doc = (type(section).__doc__ or "").strip().splitlines()[0]
        title = ".".join(path)
        lines += ["", f"[[{title}]]" if of_list else f"[{title}]", f"# {doc}"]
    for name in plain:
        if fields[name].description:
            lines.append(f"# {fields[name].description}")
        lines.append(f"# {name} = {_toml_value(getattr(section, name))}")
    for name in fields:
        if name not in plain:
            value = getattr(section, name)
            for entry in _sections(value):
                _section(entry, [*path, name], lines, of_list=isinstance(value, tuple))


def _sections(value: Any) -> tuple[Any, ...]:
    """The sections that a setting consists of: one, several, or none where it is a plain value."""
    if isinstance(value, tuple):
        return value if value and hasattr(value[0], "model_fields") else ()
    return (value,) if hasattr(value, "model_fields") else ()


def _toml_value(value: Any) -> str:
    if value is None:
        return '""  (not set)'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{_toml_value(k)} = {_toml_value(v)}" for k, v in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    return '"' + str(value).replace("\\", "\\\\").replace('"', '\\"') + '"'
