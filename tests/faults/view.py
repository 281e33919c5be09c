"""What a person sees of a run: how far it is, and two tables in the end."""

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from tests.faults.run import Result

_LINE_EVERY_S = 10.0  # where the output is no terminal


class Teller:
    """Shows how far the run is: in place in a terminal, as a line now and then elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, transient=True, redirect_stdout=False, redirect_stderr=False)
        self._started, self._told_at = time.monotonic(), 0.0

    def __enter__(self) -> "Teller":
        if self._console.is_terminal:
            self._live.start()
        self("starting")
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def __call__(self, text: str) -> None:
        now = time.monotonic()
        line = f"{now - self._started:4.0f} s · {text}"
        if self._console.is_terminal:
            self._live.update(line, refresh=True)
        elif now - self._told_at >= _LINE_EVERY_S:
            self._told_at = now
            self._console.print(line, highlight=False, soft_wrap=True)


def table_of(result: "Result", report: dict[str, Any]) -> Table:
    """Faults survived, what was counted, and the verdict."""
    table = Table(title=f"{result.records:,} records through the real pipeline", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for kind, count in sorted(result.survived.kills.items()):
        table.add_row(f"{kind} kills", str(count))
    for kind, count in sorted(result.faults.items()):
        met = result.connections[kind]
        table.add_row(f"connections {_PAST[kind]}", f"{count} times, {met} connections")
    table.add_row("rescales", str(result.survived.rescales))
    table.add_row("rewinds seen", str(result.rewinds))
    table.add_section()
    for name, count in result.totals.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    table.add_section()
    verdict = result.verdict
    table.add_row("lost", _judged(verdict.lost))
    table.add_row("doubled", _judged(verdict.doubled))
    for what, compared, wrong in (
        ("rows", verdict.users, verdict.rows_wrong),
        ("windows", verdict.windows, verdict.windows_wrong),
        ("counts", len(result.totals), len(verdict.totals_wrong)),
    ):
        table.add_row(f"{what} that differ", f"{_judged(wrong)} of {compared:,}")
    table.add_row("time", f"{report['seconds']['total']:.0f} s")
    return table


_PAST = {"cut": "cut", "slow": "slowed", "stall": "stalled", "refuse": "refused"}


def memory_table(pressure: dict[str, Any]) -> Table:
    """Memory of every process while a shard stood still."""
    taken = pressure["taken_in_pause"]
    table = Table(
        title=f"A shard paused for {pressure['pause_s']:.0f} s under full input: private resident memory, MiB",
        caption=f"{pressure['lag']:,} records ({pressure['backlog_mib']:.0f} MiB on the topic) waited; "
        f"{taken['records']:,} were sent on meanwhile (bound {taken['bound']:,}); "
        f"drained {pressure['drained_s']:.0f} s after the pause; "
        f"lost {pressure['lost']}, doubled {pressure['doubled']}",
    )
    table.add_column("process", style="bold")
    for column in ("at rest", "peak", "bound", "growth in the pause"):
        table.add_column(column, justify="right")
    for process, seen in pressure["processes"].items():
        peak = _within(seen["peak_mib"], seen["bound_mib"])
        growth = f"{seen['growth_in_pause_mib']:+.1f}"
        table.add_row(process, f"{seen['rest_mib']:.0f}", peak, f"{seen['bound_mib']:.0f}", growth)
    store = pressure["object_store"]
    table.add_row(
        "object store", "", _within(store["peak_mib"], store["bound_mib"]), f"{store['bound_mib']:.1f}", ""
    )
    return table


def _within(seen: float, bound: float) -> str:
    return f"[{'green' if seen <= bound else 'red'}]{seen:.1f}[/]"


def _judged(count: int) -> str:
    return f"[{'red' if count else 'green'}]{count:,}[/]"
