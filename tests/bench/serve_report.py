"""The figures of one run of the serving benchmark: what is compared with what, and what was to be reached."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.bench.report import ratio
from tests.bench.serve_load import Shot

NAMES = {
    "headrace": "Headrace",
    "empty_serve": "empty Ray Serve application",
    "fastapi": "FastAPI, eager PyTorch",
    "large": "Headrace, 100,000 items",
}
PARTS = ("headrace", "empty_serve", "fastapi", "profile", "large", "events")
CURVE = 200  # equally likely latencies kept per system and number of connections

Rounds = Sequence[Mapping[str, Mapping[int, Shot]]]  # per round, per system, per number of connections

# what; where it stands in the report; "at most" or "at least"; the bound; unit
TARGETS = (
    ("p50, 1 connection", ("headrace", "p50_ms"), "at most", 2.0, "ms"),
    ("p99, 1 connection", ("headrace", "p99_ms"), "at most", 10.0, "ms"),
    ("requests/s against the empty application, 16 connections", ("ratio_empty",), "at least", 0.4, "×"),
    ("requests/s against FastAPI, 16 connections", ("ratio_fastapi",), "at least", 2.0, "×"),
    ("p50 with 100,000 items against 10,000, 1 connection", ("large", "p50_times"), "at most", 2.0, "×"),
    (
        "requests/s with 10,000 items against 100,000, 16 connections",
        ("large", "rps_times"),
        "at most",
        2.0,
        "×",
    ),
    ("event to changed answer, p99", ("event_to_response_ms", "p99"), "at most", 250.0, "ms"),
    ("errors", ("errors",), "at most", 0, ""),
)


def make_report(
    rounds: Rounds,
    large: Rounds = (),
    events: Mapping[str, Any] | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """Build the report; what was not measured is null.

    Args:
        rounds: of the systems that are compared. large: of Headrace with few and with many items.
        events: what `serve_events` gave.
        extra: further entries, such as machine, versions and the profile.
    """
    systems = {name: summary(rounds, name) for name in ("headrace", "empty_serve", "fastapi")}
    speeds = {name: _of(found, "16", "rps") for name, found in systems.items()}
    report: dict[str, Any] = {
        "headrace": {
            "p50_ms": _of(systems["headrace"], "1", "p50_ms"),
            "p99_ms": _of(systems["headrace"], "1", "p99_ms"),
            "rps_16": speeds["headrace"],
            "errors": errors(rounds, "headrace"),
        },
        "empty_serve": {"rps_16": speeds["empty_serve"], "errors": errors(rounds, "empty_serve")},
        "fastapi": {"rps_16": speeds["fastapi"], "errors": errors(rounds, "fastapi")},
        "ratio_empty": ratio(speeds["headrace"], speeds["empty_serve"]),
        "ratio_fastapi": ratio(speeds["headrace"], speeds["fastapi"]),
        "event_to_response_ms": {"p50": None, "p99": None} | dict(events or {}),
        "large": _large(large),
        "by_connections": systems,
        "latency_ms": {name: curves(rounds, name) for name in systems},
        **extra,
    }
    counted = [
        *(report[name]["errors"] for name in ("headrace", "large")),
        events and events["errors"] + events["unseen"] + events["unchanged"],
    ]
    known = [count for count in counted if count is not None]
    report["errors"] = sum(known) if known else None
    report["targets"] = targets(report)
    return report


def summary(rounds: Rounds, name: str) -> dict[str, dict[str, float]]:
    """Medians over the rounds, and the lowest and highest of each figure, by number of connections."""
    found = {}
    for count in sorted({count for entry in rounds for count in entry.get(name, {})}):
        shots = [entry[name][count].figures() for entry in rounds if count in entry.get(name, {})]
        found[str(count)] = {
            figure + ending: pick([shot[figure] for shot in shots])
            for figure in ("rps", "p50_ms", "p99_ms")
            for ending, pick in (("", statistics.median), ("_min", min), ("_max", max))
        }
    return found


def errors(rounds: Rounds, name: str) -> int | None:
    """Errors in all loads of a system; None where it had none."""
    shots = [shot for entry in rounds for shot in entry.get(name, {}).values()]
    return sum(shot.errors for shot in shots) if shots else None


def curves(rounds: Rounds, name: str) -> dict[str, list[float]]:
    """Equally likely latencies of all rounds together, by number of connections."""
    found = {}
    for count in sorted({count for entry in rounds for count in entry.get(name, {})}):
        latencies = [entry[name][count].latency_ms for entry in rounds if count in entry.get(name, {})]
        places = (np.arange(CURVE) + 0.5) / CURVE
        found[str(count)] = np.quantile(np.concatenate(latencies), places).round(3).tolist()
    return found


def _large(rounds: Rounds) -> dict[str, Any]:
    """Many items beside few, from rounds of their own."""
    few, many = summary(rounds, "headrace"), summary(rounds, "large")
    counted = [errors(rounds, name) for name in ("headrace", "large")]
    return {
        "p50_times": ratio(_of(many, "1", "p50_ms"), _of(few, "1", "p50_ms")),
        "rps_times": ratio(_of(few, "16", "rps"), _of(many, "16", "rps")),
        "errors": None if None in counted else sum(count or 0 for count in counted),
        "few": few,
        "many": many,
    }


def _of(found: Mapping[str, Mapping[str, float]], connections: str, figure: str) -> float | None:
    return found[connections][figure] if connections in found else None


def targets(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every target with what was measured, and whether that is enough; null where it was not measured."""
    found = []
    for what, path, sense, bound, unit in TARGETS:
        seen: Any = report
        for part in path:
            seen = seen[part]
        met = None if seen is None else (seen <= bound if sense == "at most" else seen >= bound)
        found.append(
            {"what": what, "target": f"{sense} {bound:g} {unit}".strip(), "measured": seen, "met": met}
        )
    return found
