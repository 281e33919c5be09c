"""Hours in minutes: a paced stream, and the memory of every Headrace process all the while.

    python -m tests.bench.soak SPEC.json RESULT.json

Two figures per process: resident memory as `top` shows it, which for a shard includes the pages of its LMDB files
(they are the page cache's, and go when somebody needs the room), and anonymous memory, which is the process's own
and where a leak would show. The slope is a least-squares line through the samples after the first 30%.
Windows are short, so that closing them is part of it, and users few enough (`--soak-users`) that all their sequences
are full where the slope begins: until then a window holds longer contexts each time, which is growth of the state.
"""

import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.pipeline import Pipeline, bench_settings
from tests.bench.producer import create_topic
from tests.bench.visible import paced_producer

SAMPLE_EVERY_S = 2.0
LINGER_MS = (
    100  # the embedded broker takes ever longer to find a batch: past some 20,000 a partition it stalls
)
WINDOW_S = 60.0
SETTLE = 0.3  # share of the run that is left out of the slope


@dataclass(frozen=True)
class Spec:
    """The load, for how long, with which settings, and where the samples go."""

    broker: str
    topic: str
    client: str
    data_dir: str
    events_per_s: float
    seconds: float
    users: int
    samples_file: str
    overrides: dict[str, Any] = field(default_factory=dict)


def memory_mib(pid: int) -> tuple[float, float]:
    """(resident, anonymous) memory of a process, MiB. Linux only."""
    found = {}
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name in {"VmRSS", "RssAnon"}:
            found[name] = int(value.split()[0]) / 1024
    return found["VmRSS"], found["RssAnon"]


def slope_per_min(times_s: Sequence[float], values: Sequence[float] | np.ndarray) -> float | None:
    """Least-squares slope after the first 30% of the time, per minute; None with fewer than three samples."""
    times, memory = np.array(times_s), np.array(values)
    late = times >= times[0] + SETTLE * (times[-1] - times[0]) if len(times) else times.astype(bool)
    if late.sum() < 3:
        return None
    return float(np.polyfit(times[late] / 60, memory[late], 1)[0])


def summary(samples: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, float | None]]:
    """First and last memory and the slopes of each process, MiB and MiB per minute."""
    times = [entry["s"] for entry in samples]
    found: dict[str, dict[str, float | None]] = {}
    for name in samples[0]["mib"]:
        rss, anonymous = (np.array([entry["mib"][name][kind] for entry in samples]) for kind in (0, 1))
        slopes = [slope_per_min(times, values) for values in (rss, anonymous)]
        found[name] = {
            "rss_first_mib": float(rss[0]),
            "rss_last_mib": float(rss[-1]),
            "rss_slope_mib_per_min": slopes[0],
            "anonymous_last_mib": float(anonymous[-1]),
            "anonymous_slope_mib_per_min": slopes[1],
        }
    return found


def measure(spec: Spec) -> dict[str, Any]:
    """Run the load and sample memory; returns the summary."""
    create_topic(spec.broker, spec.topic)
    data_dir = Path(spec.data_dir)
    settings = bench_settings(spec.broker, spec.topic, data_dir, spec.client, spec.overrides, WINDOW_S)
    with (
        Pipeline(settings, catalogue=True) as pipeline,
        tempfile.TemporaryDirectory(prefix="pace-") as folder,
        Path(spec.samples_file).open("w") as out,
    ):
        pids = pipeline.pids()
        result = Path(folder) / "paced.json"
        pace = (spec.broker, spec.topic, spec.events_per_s, spec.seconds, spec.users, result)
        samples: list[dict[str, Any]] = []
        with paced_producer(*pace, LINGER_MS) as process:
            started = time.monotonic()
            while process.poll() is None and time.monotonic() < started + 2 * spec.seconds + 60:
                entry = {
                    "s": round(time.monotonic() - started, 2),
                    "records": pipeline.handed_over(),
                    "mib": {name: memory_mib(pid) for name, pid in pids.items()},
                }
                samples.append(entry)
                out.write(json.dumps(entry) + "\n")
                time.sleep(SAMPLE_EVERY_S)  # the sampling interval
            reached = json.loads(result.read_text())["events_per_s"]
        totals, restarted = pipeline.totals(), pipeline.pids() != pids
    return {
        "seconds": spec.seconds,
        "events_per_s": reached,
        "processes": summary(samples),
        "totals": totals,
        "restarted": restarted,
        "samples_file": spec.samples_file,
    }


def main() -> None:
    """Measure what the file describes."""
    spec_file, result = sys.argv[1:]
    measured = measure(Spec(**json.loads(Path(spec_file).read_text())))
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
