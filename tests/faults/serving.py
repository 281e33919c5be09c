"""`make chaos-serve`: parts of the running system die under a steady load of requests; which of them failed?"""

import argparse
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from tests.faults.serving_load import Counts, Load

if TYPE_CHECKING:
    from tests.faults.serving_system import System

_EXPLANATION = """
The real broker behind a proxy, the real `pipeline` and `api` applications with two replicas, requests of every kind
at a fixed rate, whether or not earlier ones are answered. One fault after the other, each awaited until the system is
whole again.

A request failed when it got no answer, or another one than is documented. It was degraded when

- its answer is of an older state than the user's acknowledged events make, and tells the age of that state,
- its ranking is by popularity instead of a model,
- it was an event, and was refused with 503 and Retry-After.

Exit status 0 only where no request failed, no acknowledged event is missing from the topic or is there twice under
different ids, and the system recovered from every fault by itself; 130 after Ctrl-C.
"""


@dataclass
class Outcome:
    """What was done to the system, and what came of it."""

    struck: Counter[str] = field(default_factory=Counter)
    phases: dict[str, Counts] = field(default_factory=dict)
    recovered_s: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    problems: list[str] = field(default_factory=list)
    events: dict[str, Any] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """The figures as `make chaos-serve` writes them."""
        return {
            "faults": dict(self.struck),
            "requests": sum(counts.requests for counts in self.phases.values()),
            "failed_requests": sum(counts.failed for counts in self.phases.values()),
            "degraded_requests": sum(counts.degraded for counts in self.phases.values()),
            "problems": self.problems,
            "events": self.events,
            "by_kind": {
                kind: {
                    "requests": counts.requests,
                    "failed": counts.failed,
                    "degraded": counts.degraded,
                    "slowest_ms": round(counts.slowest_ms, 1),
                    "recovered_s": [round(seconds, 1) for seconds in self.recovered_s.get(kind, ())],
                    "causes": dict(counts.causes.most_common(8)),
                }
                for kind, counts in self.phases.items()
            },
        }


def prove(system: "System", times: int, seconds: float, tell: Callable[[str], None]) -> Outcome:
    """Strike with each fault some times under load.

    Args:
        times: rounds of all faults.
        seconds: no round begins later than this.
    """
    from tests.faults.pipeline import wait_until
    from tests.faults.serving_kinds import CALM_S, Faults
    from tests.faults.serving_system import WHOLE_S

    faults, outcome, began = Faults(system), Outcome(), time.monotonic()
    with Load(system.url) as load:
        outcome.phases = load.phases
        time.sleep(CALM_S)
        rounds = (turn for turn in range(1, times + 1) if turn == 1 or time.monotonic() - began < seconds)
        for turn, (kind, strike) in ((turn, fault) for turn in rounds for fault in faults.kinds.items()):
            tell(f"round {turn}: {kind}")
            load.phase = kind
            outcome.struck[kind] += 1
            try:
                sign = strike()
                over = time.monotonic()
                wait_until(sign, WHOLE_S, "the end of its trace")
                wait_until(system.is_whole, WHOLE_S, "recovery")
            except (TimeoutError, AssertionError) as error:
                outcome.problems.append(f"{kind}: {error}")
                break
            outcome.recovered_s[kind].append(time.monotonic() - over)
            time.sleep(CALM_S)
        load.phase = "calm"
        time.sleep(CALM_S)
    outcome.events = check_events(system, load.acknowledged)
    if any(outcome.events[what] for what in ("missing", "ids_twice_acknowledged")):
        outcome.problems.append(f"events: {outcome.events}")
    return outcome


def check_events(system: "System", acknowledged: dict[str, list[tuple[int, int]]]) -> dict[str, Any]:
    """Hold the acknowledged events, by id with partition and offset, against the topic's own log.

    A record may be there twice under one id: the stream drops it.
    """
    from tests.faults.log import read_log

    settings = system.settings
    log = read_log(settings.kafka, settings.streaming.events_topic)
    found = {
        (number, record.offset): json.loads(record.value)["event_id"]
        for number, records in log.items()
        for record in records
        if record.value is not None
    }
    ids = Counter(found.values())
    missing = {event_id: places for event_id, places in acknowledged.items() if event_id not in ids}
    return {
        "acknowledged": sum(map(len, acknowledged.values())),
        "missing": len(missing),
        "missing_at": [[*place, found.get(place)] for places in missing.values() for place in places],
        "ids_twice_acknowledged": sum(len(places) > 1 for places in acknowledged.values()),
        "repeated_with_the_same_id": sum(count - 1 for count in ids.values()),
    }


def table_of(report: dict[str, Any]) -> Table:
    """The figures for people."""
    names = ("fault", "times", "requests", "failed", "degraded", "slowest", "recovered after")
    table = Table(*names, title="Faults under load")
    for kind, counts in report["by_kind"].items():
        after = counts["recovered_s"]
        table.add_row(
            kind,
            str(report["faults"].get(kind, "")),
            str(counts["requests"]),
            str(counts["failed"]),
            str(counts["degraded"]),
            f"{counts['slowest_ms']:.0f} ms",
            f"{min(after):.0f} to {max(after):.0f} s" if after else "",
        )
    return table


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "python -m tests.faults.serving",
        description=__doc__,
        epilog=_EXPLANATION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--times", type=int, default=3, help="rounds of all faults (%(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=1800.0, help="no further round begins after this (%(default).0f)"
    )
    return parser.parse_args()


def main() -> int:
    """Run, print, write the report; returns the exit status."""
    chosen, console = arguments(), Console(file=sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: nothing may be left running
    from services.local_ray import start_ray, stop_ray

    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as name:
        folder = Path(name)
        try:
            start_ray(folder / "ray")
            from tests.faults.serving_system import System

            # Ray prints a paragraph for every process that is killed
            with (
                (folder / "ray.out").open("w") as out,
                contextlib.redirect_stdout(out),
                System(folder / "data") as system,
            ):
                outcome = prove(
                    system, chosen.times, chosen.seconds, lambda said: console.print(said, style="dim")
                )
        except KeyboardInterrupt:
            console.print("stopped; no report is written")
            return 130
        finally:
            stop_ray()
    return _tell(outcome, chosen.report, console)


def _tell(outcome: Outcome, file: Path | None, console: Console) -> int:
    from tests.faults.__main__ import machine

    report = outcome.report() | {"machine": machine()}
    console.print(table_of(report))
    for kind, counts in report["by_kind"].items():
        for cause, count in counts["causes"].items():
            console.print(f"{kind}: {count} x {cause}", highlight=False)
    console.print(f"events: {outcome.events}", highlight=False)
    for problem in outcome.problems:
        console.print(f"[red]{problem}[/]", highlight=False)
    if file:
        file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        console.print(f"report: {file}")
    return 0 if report["failed_requests"] == 0 and not outcome.problems else 1


if __name__ == "__main__":
    sys.exit(main())
