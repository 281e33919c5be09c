"""Carries the measured figures from docs/results into `services/sizing.toml`, and the table into docs/operations.md.

python -m tests.bench.sizing_table
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from services.sizing_view import markdown

FIGURES, PAGE = Path("services/sizing.toml"), Path("docs/operations.md")
BEGIN, END = "<!-- size: begin -->\n", "<!-- size: end -->"

_STREAM = "docs/results/bench-stream.json", "make bench-stream"
_TRAIN = "docs/results/bench-train.json", "make bench-train"
_SERVE = "docs/results/serve/serve.json", "make bench-serve"
_SOAK = "docs/results/soak.json", "make bench-soak"
_SIZING = "docs/results/sizing.json", "python -m tests.bench.sizing"

Report = dict[str, Any]


def _per_event(client: str, process: str) -> Callable[[Report], float]:
    """CPU µs per event of one kind of process, median of the rounds."""

    def read(report: Report) -> float:
        spent = [
            sum(
                cpu
                for name, cpu in one[client]["detail"]["cpu_s_by_process"].items()
                if name.startswith(process)
            )
            for one in report["rounds"]
        ]
        return median(spent) / report["workload"]["events"] * 1e6

    return read


def _anonymous(process: str) -> Callable[[Report], float]:
    return lambda report: max(
        held["anonymous_last_mib"]
        for name, held in report["soak"]["processes"].items()
        if name.startswith(process)
    )


def _role(name: str, figure: str) -> Callable[[Report], float]:
    return lambda report: report["processes"]["roles"][name][figure]


# name → (unit, report and command, how it is read from the report)
SOURCES: dict[str, tuple[str, tuple[str, str], Callable[[Report], float]]] = {
    "events_per_s": (
        "events/s, most that was measured",
        _STREAM,
        lambda r: r["events_per_s"]["headrace_confluent"],
    ),
    "users": ("users, most that were measured", _STREAM, lambda r: r["workload"]["users"]),
    "ingestor_cpu_us": ("CPU µs per event", _STREAM, _per_event("headrace_kafka_python", "ingestor")),
    "ingestor_cpu_us_confluent": ("CPU µs per event", _STREAM, _per_event("headrace_confluent", "ingestor")),
    "shard_cpu_us": ("CPU µs per event", _STREAM, _per_event("headrace_kafka_python", "shard")),
    "ingestor_mib": ("MiB of private memory of one", _SOAK, _anonymous("ingestor")),
    "shard_mib": ("MiB of private memory of one", _SOAK, _anonymous("shard")),
    "catalogue_mib": ("MiB of private memory", _SOAK, _anonymous("catalogue")),
    "requests_per_s": (
        "rankings/s, most that was measured",
        _SERVE,
        lambda r: r["by_connections"]["headrace"]["64"]["rps"],
    ),
    "replica_cpu_us": ("CPU µs per ranking", _SERVE, lambda r: r["cpu_us"]["replica"]),
    "request_cpu_us": (
        "CPU µs per ranking, with proxy and the rest of Ray",
        _SERVE,
        lambda r: sum(us for name, us in r["cpu_us"].items() if name != "load generator"),
    ),
    "small_items": ("items that rankings were measured with", _SERVE, lambda r: r["settings"]["items"]),
    "large_items": ("items, most that were measured", _SERVE, lambda r: r["settings"]["large_items"]),
    "large_items_times": (
        "times the cost of a ranking with the small catalogue",
        _SERVE,
        lambda r: r["large"]["rps_times"],
    ),
    "targets_per_core_s": (
        "targets/s and core, learning adversarially",
        _TRAIN,
        lambda r: r["targets_per_s"]["headrace_adversarial"] / r["settings"]["threads"],
    ),
    "state_bytes_per_user": (
        "bytes of a user's row in use",
        _SIZING,
        lambda r: r["state"]["state_bytes_per_user"],
    ),
    "file_bytes_per_user": (
        "bytes of disk, free pages included",
        _SIZING,
        lambda r: r["state"]["file_bytes_per_user"],
    ),
    "snapshot_bytes_per_user": (
        "bytes in a snapshot",
        _SIZING,
        lambda r: r["state"]["snapshot_bytes_per_user"],
    ),
    "window_bytes_per_event": (
        "bytes in a window's file",
        _SIZING,
        lambda r: r["state"]["window_bytes_per_event"],
    ),
    "catalog_bytes_per_item": ("bytes of disk", _SIZING, lambda r: r["items"]["catalog_bytes_per_item"]),
    "bundle_bytes": (
        "bytes of a model with the small catalogue",
        _SIZING,
        lambda r: r["items"]["bundle_bytes"],
    ),
    "bundle_bytes_per_item": (
        "bytes of a model for each further item",
        _SIZING,
        lambda r: r["items"]["bundle_bytes_per_item"],
    ),
    "replica_bytes_per_item": ("bytes of memory", _SIZING, lambda r: r["items"]["replica_bytes_per_item"]),
    "learner_bytes_per_item": ("bytes of memory", _SIZING, lambda r: r["items"]["learner_bytes_per_item"]),
    "replica_mib": ("MiB of private memory of one, small catalogue", _SIZING, _role("replica", "memory_mib")),
    "learner_mib": ("MiB of private memory, small catalogue", _SIZING, _role("learner", "memory_mib")),
    "ingestor_idle_cores": ("cores of one at a few events/s", _SIZING, _role("ingestor", "cores")),
    "shard_idle_cores": ("cores of one at a few events/s", _SIZING, _role("shard", "cores")),
    "rest_mib": (
        "MiB of private memory of all other processes",
        _SIZING,
        _role("rest", "memory_mib_together"),
    ),
    "rest_cores": ("cores of all other processes", _SIZING, _role("rest", "cores")),
}


def figures_toml() -> str:
    """The text of `services/sizing.toml`."""
    reports = {path: json.loads(Path(path).read_text()) for _, (path, _), _ in SOURCES.values()}
    lines = [
        "# What `headrace size` reckons with: each figure, the report it was read from, the command that made that.",
        "# Written by `python -m tests.bench.sizing_table`; change the reports, not this.",
    ]
    for name, (unit, (path, command), read) in SOURCES.items():
        value = float(f"{read(reports[path]):.6g}")
        lines += [
            "",
            f"[{name}]",
            f"value = {value}",
            f'unit = "{unit}"',
            f'report = "{path}"',
            f'command = "{command}"',
        ]
    return "\n".join(lines) + "\n"


def page_with_table(page: str) -> str:
    """The page with the table as it is now between its marks."""
    return re.sub(f"{BEGIN}.*?{END}", lambda _: f"{BEGIN}\n{markdown()}\n\n{END}", page, flags=re.DOTALL)


def main() -> None:
    """Write both."""
    FIGURES.write_text(figures_toml())
    PAGE.write_text(page_with_table(PAGE.read_text()))


if __name__ == "__main__":
    main()
