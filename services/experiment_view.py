"""Experiments as a person reads them."""

from datetime import UTC, datetime
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from serving.experiments.plan import Plan
from serving.experiments.rollout import Rollout


def plan_view(plan: Plan | None, rollout: Rollout | None, current: str | None) -> RenderableType:
    """What `experiment show` prints.

    Args:
        rollout: None where canaries are off. current: the registry's current version.
    """
    parts: list[RenderableType] = []
    if plan is None:
        parts.append(Text("No experiment runs."))
    else:
        began = datetime.fromtimestamp(plan.started, UTC).strftime("%Y-%m-%d %H:%M")
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("arm", "version", "share"):
            table.add_column(name, justify="right" if name == "share" else "left")
        for arm in plan.arms:
            table.add_row(Text(arm.name, "cyan"), arm.version, f"{arm.share:.2%}")
        rest = 1 - sum(arm.share for arm in plan.arms)
        if plan.kind != "shadow" and rest > 1e-9:
            table.add_row(
                Text("control" if plan.kind == "canary" else "all others", "dim"), current, f"{rest:.2%}"
            )
        parts += [Text(f"{plan.name}: {plan.kind}, since {began} UTC", "bold"), table]
    if rollout is not None and rollout.settled is not None:
        trial = f"; {rollout.candidate} is on trial with {rollout.share:.0%}" if rollout.candidate else ""
        parts += ["", Text(f"{rollout.settled} serves{trial}", "bold"), Text(rollout.said, "dim")]
    return Stack(*parts)


def report_view(report: dict[str, Any]) -> RenderableType:
    """What `experiment report` prints."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ("arm", "users", "succeeded", "rate", "impressions", "items", "successes", "per item")
    explored = any(arm["without_exploration"] for arm in report["arms"])
    for name in (*columns, "without exploration") if explored else columns:
        table.add_column(name, justify="left" if name == "arm" else "right", no_wrap=True)
    for arm in report["arms"]:
        row: list[RenderableType] = [
            Text(arm["arm"], "cyan"),
            f"{arm['ripe_users']:,}",
            f"{arm['converted_users']:,}",
            _percent(arm["rate"]),
            f"{arm['impressions']:,}",
            f"{arm['items_shown']:,}",
            f"{arm['successes']:,}",
            _percent(arm["success_per_item"]),
        ]
        table.add_row(
            *row, *([_percent((arm["without_exploration"] or {}).get("snips"))] if explored else [])
        )
    notes = [f"a success counts for {_duration(report['window_s'])} after what was shown"]
    if report["unripe_users"]:
        notes.append(f"{report['unripe_users']:,} users are too new to count")
    if report["crossed_users"]:
        notes.append(f"{report['crossed_users']:,} users were seen in more than one arm and are left out")
    if report["rejected_events"]:
        notes.append(f"{report['rejected_events']:,} records of events do not validate and are left out")
    if report["split_p"] is not None:
        notes.append(f"split as planned: p = {report['split_p']:.2g}")
    return Stack(
        Text(report["experiment"], "bold"),
        table,
        "",
        Text("; ".join(notes), "dim"),
        "",
        Text(report["verdict"], "bold"),
    )


def _percent(value: float | None) -> str:
    return "—" if value is None else f"{value:.2%}"


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length and seconds % length == 0:
            return f"{seconds / length:g}{unit}"
    return f"{seconds:g}s"
