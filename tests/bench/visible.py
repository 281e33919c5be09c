"""Produce-to-visible latency under load.

    python -m tests.bench.visible SPEC.json RESULT.json

A process of its own paces events onto the topic. Meanwhile probes, events of users who have no others, are produced
one after the other to the partitions in turn, and the state is read as serving reads it (`StateReader`, from the page
cache) every millisecond until the probe's row is there. The latency of a probe is wall-clock time from just before
it was handed to the producer to the read that saw it. Probes are sent on schedule whether or not earlier ones
have been seen, so a stall counts against every probe that falls into it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streaming.reader import StateReader
from tests.bench.pipeline import Pipeline, bench_settings, quiet
from tests.bench.producer import LINGER_MS, PARTITIONS, create_topic, open_producer

PROBE_EVERY_S = 0.02
READ_EVERY_S = 0.001
WARM_UP_S = 6.0  # probes sent before this are not counted
UNSEEN_AFTER_S = 10.0
PRODUCER_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Spec:
    """What to measure: the load, for how long, and with which settings."""

    broker: str
    topic: str
    client: str
    data_dir: str
    events_per_s: float
    seconds: float
    users: int
    overrides: dict[str, Any] = field(default_factory=dict)


@contextmanager
def paced_producer(
    broker: str, topic: str, rate: float, seconds: float, users: int, result: Path, linger_ms: int = LINGER_MS
) -> Any:
    """A process that produces at that rate; ends with the block."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.producer",
        broker,
        topic,
        str(rate),
        str(seconds),
        str(users),
        str(linger_ms),
    ]
    process = subprocess.Popen([*command, str(result)])
    try:
        yield process
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(10)


def probe(number: int) -> tuple[int, bytes, bytes]:
    """Partition, key and value of a probe."""
    user = f"probe-{number}"
    event: dict[str, Any] = {"event_id": user, "user_id": user, "item_id": "i00001", "type": "click"}
    event["timestamp"] = int(time.time() * 1000)
    return number % PARTITIONS, user.encode(), json.dumps(event).encode()


def sample(
    broker: str, topic: str, reader: StateReader, seconds: float
) -> dict[int, tuple[float, float | None]]:
    """Send probes for so long; returns (seconds since the start at which it was sent, latency or None) of each."""
    send, finish = open_producer(broker, topic, linger_ms=0)
    started = time.time()
    pending: dict[int, float] = {}
    seen: dict[int, tuple[float, float | None]] = {}
    number = 0
    while (now := time.time() - started) < seconds + UNSEEN_AFTER_S and (now < seconds or pending):
        while now < seconds and number * PROBE_EVERY_S <= now:
            pending[number] = time.time() - started
            send(*probe(number))
            number += 1
        waiting = list(pending)
        totals = reader.read([f"probe-{which}" for which in waiting])["total"] if waiting else ()
        read_at = time.time() - started
        for which, total in zip(waiting, totals, strict=True):
            if total:
                sent = pending.pop(which)
                seen[which] = sent, read_at - sent
        time.sleep(READ_EVERY_S)  # the sampling interval
    finish()
    return seen | {which: (sent, None) for which, sent in pending.items()}


def summary(samples: Sequence[tuple[float, float | None]], warm_up_s: float) -> dict[str, Any]:
    """Percentiles of the probes after the warm-up; those never seen count as slower than all others."""
    counted = [latency for sent, latency in samples if sent >= warm_up_s]
    unseen = sum(latency is None for latency in counted)
    ordered = np.array([np.inf if latency is None else latency * 1000 for latency in counted])
    found = {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    values = {
        name: float(np.percentile(ordered, at, method="higher")) if len(ordered) else np.inf
        for name, at in found.items()
    }
    finite = {name: round(value, 1) if np.isfinite(value) else None for name, value in values.items()}
    return finite | {"probes": len(counted), "unseen": unseen}


def measure(spec: Spec) -> dict[str, Any]:
    """Run the load and the probes; returns the summary and the rate that was reached."""
    create_topic(spec.broker, spec.topic)
    settings = bench_settings(spec.broker, spec.topic, Path(spec.data_dir), spec.client, spec.overrides)
    with Pipeline(settings) as pipeline, tempfile.TemporaryDirectory(prefix="pace-") as folder:
        pipeline.pids()  # all are up
        quiet()
        result = Path(folder) / "paced.json"
        pace = (spec.broker, spec.topic, spec.events_per_s, spec.seconds, spec.users, result)
        reader = StateReader(settings.data_dir / "state", settings.streaming)
        with paced_producer(*pace) as process:
            _wait_for_load(pipeline)
            samples = sample(spec.broker, spec.topic, reader, spec.seconds - 2)
            process.wait(PRODUCER_TIMEOUT_S)
            reached = json.loads(result.read_text())["events_per_s"]
        reader.close()
        errors = pipeline.errors()
    found: Mapping[str, Any] = summary(list(samples.values()), WARM_UP_S)
    return {**found, "events_per_s": reached, "wanted_events_per_s": spec.events_per_s, "errors": errors}


def _wait_for_load(pipeline: Pipeline) -> None:
    """Until the paced producer's first events arrive: it prepares its records first."""
    deadline = time.monotonic() + PRODUCER_TIMEOUT_S
    while not pipeline.handed_over():
        if time.monotonic() > deadline:
            raise TimeoutError(f"no event arrived within {PRODUCER_TIMEOUT_S:.0f} s: {pipeline.errors()}")
        time.sleep(0.1)  # between two looks, bounded by the deadline


def main() -> None:
    """Measure what the file describes."""
    spec_file, result = sys.argv[1:]
    measured = measure(Spec(**json.loads(Path(spec_file).read_text())))
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
