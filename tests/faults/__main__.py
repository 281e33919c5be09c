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
from typing import Any

from rich.console import Console

from tests.faults.view import Teller, memory_table, table_of

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
        help="afterwards, pause a shard for 30 s under full input and watch memory (about a minute)",
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
    from tests.faults.backpressure import press
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
        pressure = press(folder / "pressure", tell) if chosen.backpressure else None
    if pressure is not None:
        report["backpressure"] = pressure.report()
    report["seconds"]["total"] = round(time.monotonic() - started, 1)
    report["machine"] = machine()
    console.print(table_of(result, report))
    if pressure is not None:
        console.print(memory_table(report["backpressure"]))
    for difference in result.verdict.differences:
        console.print(f"[red]{difference}[/]", highlight=False)
    if chosen.report:
        chosen.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"report: {chosen.report}")
    return 0 if result.verdict.ok and (pressure is None or pressure.ok) else 1


def machine() -> dict[str, Any]:
    """Where the figures come from."""
    return {
        "cpus": os.cpu_count(),
        "load_average": [round(load, 1) for load in os.getloadavg()],
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


if __name__ == "__main__":
    sys.exit(main())
