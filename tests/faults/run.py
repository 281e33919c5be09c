"""One run: broker, proxy, pipeline and stream together, faults on top, and the comparison at the end."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from streaming.broker import EmbeddedBroker, free_port
from streaming.kafka import ensure_topics
from tests.faults.chaos import Chaos, Plan, Survived
from tests.faults.log import ends, read_log
from tests.faults.pipeline import Pipeline, Rewinds, settings_for, wait_until
from tests.faults.proxy import Proxy
from tests.faults.stream import Feed, Stream
from tests.faults.truth import truth_of
from tests.faults.verdict import Verdict, compare

BASE_MS = 1_700_000_400_000  # start of a window
_FEED_TIMEOUT_S = 120.0
_DRAIN_TIMEOUT_S = 180.0
_LOOK_EVERY_S = 1.0

Tell = Callable[[str], None]
"""Is told in a few words what goes on, about once a second."""


@dataclass
class Result:
    """What a run survived, and how it ended."""

    plan: Plan
    verdict: Verdict
    survived: Survived
    faults: dict[str, int]  # of the network, by kind
    connections: dict[str, int]  # met by them
    rewinds: int
    records: int
    totals: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)

    def report(self) -> dict[str, Any]:
        """As `make faults` writes it."""
        verdict = self.verdict
        return {
            "events": self.records,
            "kills": self.survived.kills.total(),
            "connection_faults": sum(self.faults.values()),
            "lost": verdict.lost,
            "doubled": verdict.doubled,
            "windows_identical": verdict.windows_wrong == 0,
            "rows_identical": verdict.rows_wrong == 0,
            "totals_identical": not verdict.totals_wrong,
            "windows": verdict.windows,
            "users": verdict.users,
            "kills_by_kind": dict(self.survived.kills),
            "connection_faults_by_kind": self.faults,
            "connections_met": self.connections,
            "rescales": self.survived.rescales,
            "rewinds": self.rewinds,
            "totals": self.totals,
            "dead_letters_repeated": verdict.dead_letters_repeated,
            "differences": verdict.differences,
            "seed": self.plan.seed,
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
        }


class Monitor:
    """Looks at the pipeline once a second, from a thread: rewinds are counted, and somebody is told."""

    def __init__(self, pipeline: Pipeline, tell: Callable[[int], None]) -> None:
        self._pipeline, self._tell = pipeline, tell
        self.rewinds = Rewinds()
        self._applied: dict[str, int] = {}
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking."""
        self._halt.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._halt.wait(_LOOK_EVERY_S):
            for name in self._pipeline.names("ingestor"):
                stats = self._pipeline.ask(name, "stats")
                if stats is not None:
                    self.rewinds.update(name, stats.rewinds)
            shards: dict[int, int] = {}
            for name in self._pipeline.names("shard"):
                for shard in self._pipeline.ask(name, "stats") or ():
                    shards[shard.shard] = shard.applied
            self._tell(sum(shards.values()))


def prove(plan: Plan, folder: Path, tell: Tell) -> Result:
    """Run a plan in the Ray that is running.

    Args:
        folder: for everything that the run stores.
        tell: is told how far it is.

    Raises:
        TimeoutError: something did not come back, or the stream did not drain.
    """
    port, inner = free_port(), free_port()
    with EmbeddedBroker(inner, advertised_port=port), Proxy(port, inner) as proxy:
        settings = settings_for(f"127.0.0.1:{port}", folder, "faults")
        ensure_topics(settings.kafka, [settings.streaming.events_topic])
        stream = Stream(plan.events, plan.users, settings.streaming.event_types, plan.seed, BASE_MS)
        feed = Feed(settings, stream, settings.kafka.partitions)
        try:
            return _prove(plan, Pipeline(settings), proxy, feed, tell)
        finally:
            feed.stop()


def _prove(plan: Plan, pipeline: Pipeline, proxy: Proxy, feed: Feed, tell: Tell) -> Result:
    settings, clock = pipeline.settings, _Clock()
    with pipeline:
        chaos = Chaos(plan, pipeline, proxy, feed)
        kills = chaos.survived.kills

        def progress(applied: int) -> None:
            tell(
                f"{feed.acknowledged:,} of {plan.events:,} sent · {applied:,} applied · {kills.total()} kills · "
                f"{proxy.faults.total()} connection faults · {chaos.survived.rescales} rescales · "
                f"{monitor.rewinds.total} rewinds"
            )

        monitor = Monitor(pipeline, progress)
        try:
            chaos.run()
            clock.lap("faults")
            feed.finish(_FEED_TIMEOUT_S)
            log = read_log(settings.kafka, settings.streaming.events_topic)
            wait_until(lambda: pipeline.has_applied(ends(log)), _DRAIN_TIMEOUT_S, "the end of the stream")
        except TimeoutError as error:
            raise TimeoutError(f"{error}; the pipeline as it stands: {pipeline.describe()}") from error
        finally:
            chaos.stop()
            monitor.stop()
        clock.lap("drain")
    tell("the pipeline has stopped; comparing what it left on disk with the oracle")
    truth = truth_of(log, settings.streaming)
    verdict = compare(settings, truth, read_log(settings.kafka, settings.kafka.dead_letter_topic))
    clock.lap("compare")
    return Result(
        plan=plan,
        verdict=verdict,
        survived=chaos.survived,
        faults=dict(proxy.faults),
        connections=dict(proxy.connections),
        rewinds=monitor.rewinds.total,
        records=truth.records,
        totals=dict(truth.totals),
        seconds=clock.laps,
    )


class _Clock:
    """Seconds per part of a run."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._at = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name], self._at = now - self._at, now
