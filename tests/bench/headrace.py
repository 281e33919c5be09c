"""Headrace over the whole topic, once, in a process of its own.

    python -m tests.bench.headrace SPEC.json RESULT.json

The clock runs from the last moment at which the ingestors had nothing yet (asked every few milliseconds, so it starts
early by at most that) until the shards answer that every record is applied or dropped as a duplicate. A shard answers
behind the batches it has been sent, and a batch is applied when its LMDB transaction, which holds the rows and
the offsets, is committed: nothing is in flight when the clock stops. Beyond the peers' work, Headrace also keeps
decayed counts, sessions, and the buffers of training windows, all in that transaction.
"""

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import ray

from streaming.hashing import hash_one
from streaming.reader import StateReader
from tests.bench.pipeline import START_TIMEOUT_S, Pipeline, bench_settings, cpu_seconds, wait_until
from tests.bench.profiling import Profiler

_START_EVERY_S = 0.003
_RUN_EVERY_S = 0.05
_END_EVERY_S = 0.02
_RUN_TIMEOUT_S = 400.0


@dataclass(frozen=True)
class Spec:
    """What to measure.

    Attributes:
        events, applied, duplicates: records on the topic, and how they must be counted.
        witness, newest: a user, and the event ids of the user's newest events, oldest first.
        profile_dir: profiles go there; None: no profile is taken.
    """

    broker: str
    topic: str
    client: str
    data_dir: str
    events: int
    applied: int
    duplicates: int
    witness: str
    newest: list[str]
    overrides: dict[str, Any] = field(default_factory=dict)
    profile_dir: str | None = None


def measure(spec: Spec) -> dict[str, Any]:
    """Run once; returns times, counts and CPU seconds.

    Raises:
        TimeoutError: the events did not all arrive.
        AssertionError: they were counted wrongly, or the witness's row is wrong.
    """
    settings = bench_settings(spec.broker, spec.topic, Path(spec.data_dir), spec.client, spec.overrides)
    with Pipeline(settings) as pipeline:
        first = first_polled(pipeline)
        pids = pipeline.pids()
        before = cpu_seconds(pids)
        with Profiler(pids, Path(spec.profile_dir) if spec.profile_dir else None):
            totals: dict[str, int] = {}

            def applied() -> bool:
                totals.update(pipeline.totals())
                return sum(totals[name] for name in ("applied", "duplicates", "dead_letters")) >= spec.events

            def unfinished() -> str:
                return f"only {totals or pipeline.handed_over()} of {spec.events}: {pipeline.errors()}"

            wait_until(
                lambda: pipeline.handed_over() >= spec.events, _RUN_EVERY_S, _RUN_TIMEOUT_S, unfinished
            )
            last = wait_until(applied, _END_EVERY_S, _RUN_TIMEOUT_S, unfinished)
        after = cpu_seconds(pids)
        check(spec, totals, settings.data_dir / "state", settings.streaming)
    return {
        "first": first,
        "last": last,
        "records": spec.events,
        "cpu_s": sum(after.values()) - sum(before.values()),
        "cpu_s_by_process": {name: round(after[name] - before[name], 2) for name in pids},
        **totals,
    }


def first_polled(pipeline: Pipeline) -> float:
    """Clock time of the last moment at which no ingestor had handed over a record."""
    empty_at = pipeline.started_at
    asked = {actor.stats.remote(): actor for actor in pipeline.ingestors}
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        answered, _ = ray.wait(list(asked), num_returns=1, timeout=START_TIMEOUT_S)
        for reference in answered:
            actor = asked.pop(reference)
            if ray.get(reference, timeout=START_TIMEOUT_S).records:
                return empty_at
            empty_at = time.time()
            asked[actor.stats.remote()] = actor
        time.sleep(_START_EVERY_S)
    raise TimeoutError(f"no ingestor read a record within {START_TIMEOUT_S:.0f} s: {pipeline.errors()}")


def check(spec: Spec, totals: Mapping[str, int], state_dir: Path, streaming: Any) -> None:
    """Counts and the witness's row must be exact."""
    expected = {"applied": spec.applied, "duplicates": spec.duplicates, "dead_letters": 0}
    seen = {name: totals[name] for name in expected}
    assert seen == expected, f"expected {expected}, counted {seen}"
    reader = StateReader(state_dir, streaming)
    try:
        ids = reader.read([spec.witness])["events"]["id"][0]
    finally:
        reader.close()
    newest = np.array([hash_one(event_id) for event_id in spec.newest], np.uint64)
    assert ids[-len(newest) :].tolist() == newest.tolist(), f"the row of {spec.witness} is wrong"


def main() -> None:
    """Measure what the file describes."""
    spec_file, result = sys.argv[1:]
    measured = measure(Spec(**json.loads(Path(spec_file).read_text())))
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
