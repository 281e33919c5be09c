"""The figures of one benchmark run: what is compared with what, as JSON and as a table.

Medians over the rounds are compared. The peer that ratios are taken against is the faster of PEERS; the other ways
of writing a peer stand in the report and in the table beside them.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

HEADRACE = {
    "headrace_kafka_python": "Headrace, kafka-python",
    "headrace_confluent": "Headrace, confluent-kafka",
}
PEERS = {"quixstreams": "Quix Streams", "bytewax": "Bytewax, as documented"}
EXTRA = {"bytewax_tuned": "Bytewax, tuned by us"}
NAMES = HEADRACE | PEERS | EXTRA


def median(values: Sequence[float] | None) -> float | None:
    """The middle of them; None of none."""
    return round(statistics.median(values), 1) if values else None


def ratio(ours: float | None, theirs: float | None) -> float | None:
    """How many times faster; None where a side was not measured."""
    return None if not ours or not theirs else round(ours / theirs, 2)


def better_peer(events_per_s: Mapping[str, float | None]) -> str | None:
    """Name of the fastest of PEERS that was measured."""
    measured = {name: value for name in PEERS if (value := events_per_s.get(name))}
    return max(measured, key=lambda name: measured[name]) if measured else None


def make_report(
    rounds: Sequence[Mapping[str, Mapping[str, Any]]], visible_ms: Mapping[str, float] | None, **extra: Any
) -> dict[str, Any]:
    """Build the report.

    Args:
        rounds: per round, per system, what `Run.figures()` gave; a system may be absent.
        visible_ms: p50, p99 and how they were taken; None where not measured.
        extra: further entries, such as machine and versions.
    """
    speeds = {
        name: median([entry[name]["events_per_s"] for entry in rounds if name in entry]) for name in NAMES
    }
    peer = better_peer(speeds)
    reference = speeds[peer] if peer else None
    return {
        "events_per_s": speeds,
        "better_peer": peer,
        "ratio_kafka_python": ratio(speeds["headrace_kafka_python"], reference),
        "ratio_fast": ratio(speeds["headrace_confluent"], reference),
        "ratios": {
            ours: {theirs: ratio(speeds[ours], speeds[theirs]) for theirs in PEERS | EXTRA}
            for ours in HEADRACE
        },
        "visible_ms": {"p50": None, "p99": None} | dict(visible_ms or {}),
        "rounds": [dict(entry) for entry in rounds],
        **extra,
    }


def speed_table(report: Mapping[str, Any]) -> Table:
    """Events per second per system, and how they compare."""
    machine = report["machine"]
    table = Table(
        title=f"{report['workload']['events']:,} events of {report['workload']['users']:,} users · "
        f"{machine['cores']} cores, {machine['cpu']}",
        title_justify="left",
    )
    table.add_column("system", style="bold")
    for column in ("min", "median", "max", "CPU µs per event", "against the better peer"):
        table.add_column(column, justify="right")
    speeds, peer = report["events_per_s"], report["better_peer"]
    for name, label in NAMES.items():
        runs = [entry[name] for entry in report["rounds"] if name in entry]
        if not runs:
            continue
        found = [run["events_per_s"] for run in runs]
        cpu = [run["cpu_s"] / report["workload"]["events"] * 1e6 for run in runs if run.get("cpu_s")]
        against = ratio(speeds[name], speeds[peer] if peer else None)
        table.add_row(
            f"{label} ←" if name == peer else label,
            *(f"{value:,.0f}" for value in (min(found), speeds[name], max(found))),
            f"{statistics.median(cpu):.1f}" if cpu else "–",
            "–" if against is None else f"{against:.2f}×",
        )
    return table


def visible_line(visible: Mapping[str, Any]) -> str:
    """Produce-to-visible latency in one line."""
    return (
        f"produced → visible at {visible['events_per_s']:,.0f} events/s: p50 {_ms(visible['p50'])}, "
        f"p99 {_ms(visible['p99'])} ({visible['probes']} probes, {visible['unseen']} not seen in time)"
    )


def _ms(value: float | None) -> str:
    return "not within the time" if value is None else f"{value:.0f} ms"
