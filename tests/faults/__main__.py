"""`make faults`: kill, cut off, rescale and overload the real pipeline, and prove that nothing is lost or doubled."""

import argparse
import contextlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

if TYPE_CHECKING:
    from tests.faults.run import Result

_LINE_EVERY_S = 10.0  # where the output is no terminal

_EXPLANATION = """
A real broker, the real `pipeline` application in a Ray of its own, and a stream of events that are out of order,
late, repeated, malformed or erase their users. Ingestors, shards and the Supervisor are killed with SIGKILL at
random moments, connections to the broker are cut, slowed, stalled and refused, and the shards are moved to twice the
actors and back. In the end every row, count and window on disk is compared with a plain oracle that reads the
topic's own log.

Exit status 0 only where nothing is lost, nothing is doubled, and every row, count and window is identical; 130 after
Ctrl-C.
"""


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.faults",
        description=__doc__,
        epilog=_EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--events", type=int, default=300_000, help="records of the stream (%(default)s)")
    parser.add_argument("--kills", type=int, default=50, help="SIGKILLs (%(default)s)")
    parser.add_argument("--connection-faults", type=int, default=24, help="network faults (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the stream and the faults (%(default)s)")
    parser.add_argument(
        "--backpressure",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="then also pause a shard for 30 s under full input, and watch memory",
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy data and logs there in the end")
    chosen = parser.parse_args()
    for name in ("events", "kills", "connection_faults"):
        if getattr(chosen, name) < (1000 if name == "events" else 0):
            parser.error(f"--{name.replace('_', '-')}: got {getattr(chosen, name)}, which is too few")
    return chosen


def main() -> int:
    """Run, print, write the report; returns the exit status."""
    chosen, console = arguments(), Console(file=sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing may be left running
    from services.local_ray import start_ray, stop_ray

    with tempfile.TemporaryDirectory(prefix="headrace-faults-") as name:
        folder = Path(name)
        try:
            start_ray(folder / "ray")
            # Ray prints a paragraph for every process that is killed
            with (folder / "ray.out").open("w") as out, contextlib.redirect_stdout(out):
                return _prove(chosen, folder, console)
        except KeyboardInterrupt:
            console.print("stopped; no report is written")
            return 130
        finally:
            if chosen.keep:
                shutil.copytree(folder, chosen.keep, dirs_exist_ok=True, ignore_dangling_symlinks=True)
            stop_ray()


def _prove(chosen: argparse.Namespace, folder: Path, console: Console) -> int:
    from tests.faults.chaos import Plan
    from tests.faults.run import prove

    plan = Plan(
        events=chosen.events,
        kills=chosen.kills,
        connection_faults=chosen.connection_faults,
        seed=chosen.seed,
    )
    started = time.monotonic()
    with Teller(console) as tell:
        result = prove(plan, folder / "faults", tell)
        report = result.report()
    ok = result.verdict.ok
    report["seconds"]["total"] = round(time.monotonic() - started, 1)
    report["machine"] = machine()
    _show(console, result, report)
    if chosen.report:
        chosen.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"report: {chosen.report}")
    return 0 if ok else 1


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


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


def _show(console: Console, result: "Result", report: dict[str, Any]) -> None:
    table = Table(title=f"{result.records:,} records through the real pipeline", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    for kind, count in sorted(result.survived.kills.items()):
        table.add_row(f"{kind} kills", str(count))
    for kind, count in sorted(result.faults.items()):
        table.add_row(f"connections: {kind}", f"{count} times, {result.connections[kind]} connections")
    table.add_row("rescales", str(result.survived.rescales))
    table.add_row("rewinds", str(result.rewinds))
    table.add_section()
    for name, count in result.totals.items():
        table.add_row(name.replace("_", " "), f"{count:,}")
    table.add_section()
    verdict = result.verdict
    table.add_row("lost", _judged(verdict.lost))
    table.add_row("doubled", _judged(verdict.doubled))
    table.add_row("users compared", f"{verdict.users:,}")
    table.add_row("rows that differ", _judged(verdict.rows_wrong))
    table.add_row("windows compared", str(verdict.windows))
    table.add_row("windows that differ", _judged(verdict.windows_wrong))
    table.add_row("counts that differ", _judged(len(verdict.totals_wrong)))
    table.add_row("time", f"{report['seconds']['total']:.0f} s")
    console.print(table)
    for name, (expected, found) in verdict.totals_wrong.items():
        console.print(f"[red]{name}: expected {expected:,}, found {found:,}[/]")
    for difference in verdict.differences:
        console.print(f"[red]{difference}[/]", highlight=False)


def _judged(count: int) -> str:
    return f"[{'red' if count else 'green'}]{count:,}[/]"


if __name__ == "__main__":
    sys.exit(main())
