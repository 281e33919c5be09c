"""A plan as a person reads it: in a terminal, and as the table of docs/operations.md."""

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.sizing import Load, Size, figures, size

# name → load: what the table in the docs shows
EXAMPLES = {
    "a trial": Load(events_per_s=100, users=50_000, items=10_000, requests_per_s=20),
    "a shop": Load(events_per_s=1_000, users=1_000_000, items=50_000, requests_per_s=200),
    "a large shop": Load(events_per_s=10_000, users=5_000_000, items=100_000, requests_per_s=1_000),
    "a platform": Load(events_per_s=50_000, users=30_000_000, items=100_000, requests_per_s=4_000),
}


def size_view(plan: Size, prices: Sequence[float] | None) -> RenderableType:
    """What `headrace size` prints.

    Args:
        prices: per month, of a core, a GiB of memory, a GiB of disk; None: not given.
    """
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for name in ("part", "processes", "cores", "memory GiB", "disk GiB"):
        table.add_column(name, justify="left" if name == "part" else "right", no_wrap=True)
    table.add_column("because", ratio=1)
    for part in plan.parts:
        table.add_row(
            part.name,
            f"{part.processes}" if part.processes else "",
            *(f"{number:,.2f}" if number else "" for number in (part.cores, part.memory_gib, part.disk_gib)),
            part.why,
        )
    order = Text(
        f"Order for the worker: {plan.cores} cores, {plan.memory_gib} GiB of memory, {plan.disk_gib:,} GiB of disk",
        "bold",
    )
    lines: list[RenderableType] = [
        table,
        "",
        order,
        "  rounded up; a quarter more memory; state and catalogue twice: an upgraded cluster has its own",
        f"  snapshots: {plan.snapshots_gib:,.1f} GiB in their store; Kafka: {plan.kafka_gib:,.1f} GiB for each copy",
        f"  beside it: Ray's head (0.5 cores, 2 GiB), Redis, Kafka; per month: {cost_view(plan, prices)}",
        "",
        Text("Settings", "bold"),
        *(f"  {name} = {number}" for name, number in plan.settings.items()),
    ]
    if plan.notes:
        lines += ["", Text("Mind", "bold yellow"), *(f"  · {note}" for note in plan.notes)]
    return Group(*lines)


def cost_view(plan: Size, prices: Sequence[float] | None) -> str:
    """What it costs, or how to reckon it."""
    formula = f"{plan.cores} × core + {plan.memory_gib} × GiB of memory + {plan.disk_gib:,} × GiB of disk"
    if prices is None:
        return f"{formula} (--price CORE,MEMORY,DISK)"
    core, memory, disk = prices
    return f"{formula} = {plan.cost(core, memory, disk):,.2f}"


def sources_view() -> RenderableType:
    """Every figure with where it is from."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("figure", "value", "of", "report", "made by"):
        table.add_column(name, justify="right" if name == "value" else "left", overflow="fold")
    for name, figure in figures().items():
        table.add_row(name, f"{figure.value:,.6g}", figure.unit, figure.report, figure.command)
    return table


def size_json(plan: Size, prices: Sequence[float] | None) -> dict[str, Any]:
    """A plan for a program."""
    told = {name: entry for name, entry in vars(plan).items() if name not in ("load", "parts")}
    told |= {"load": vars(plan.load), "parts": [vars(part) for part in plan.parts]}
    return told | {"cost_per_month": None if prices is None else plan.cost(*prices)}


def markdown() -> str:
    """The table of docs/operations.md."""
    lines = [
        "| | events/s | users | items | rankings/s | cores | memory | disk | ingestors, shard actors, replicas |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---|",
    ]
    for name, load in EXAMPLES.items():
        plan = size(load)
        given = (load.events_per_s, load.users, load.items, load.requests_per_s)
        wanted = ("streaming.ingestors", "streaming.shard_actors", "serving.replicas.maximum")
        cells = [
            name,
            *(f"{number:,.0f}" for number in given),
            f"{plan.cores}",
            f"{plan.memory_gib} GiB",
            f"{plan.disk_gib:,} GiB",
            ", ".join(f"{plan.settings[one]}" for one in wanted),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
