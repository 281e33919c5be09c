"""Headrace's streaming actors under test, in a Ray of their own: start, count, stop.

The same actors as in production, created by the same class as in production (`services.actors.Actors`).
The knobs that matter for speed stand first.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import ray

from services.actors import Actors, kill_actors
from services.local_ray import start_ray, stop_ray
from services.settings import Settings, make_settings
from streaming.cataloguer import Cataloguer
from streaming.kafka import ensure_topics

# Streaming settings for two cores, by client; `--set name=value` overrides one for both. kafka-python takes half a
# core and more for itself, so there are two ingestors; with confluent-kafka one keeps two shard actors busy.
TUNING: dict[str, dict[str, Any]] = {
    "kafka-python": {"ingestors": 2, "shard_actors": 2},
    "confluent": {"ingestors": 1, "shard_actors": 2},
}
MAP_SIZE_GIB = 4
START_TIMEOUT_S = 120.0
CALL_TIMEOUT_S = 60.0


def bench_settings(
    broker: str, topic: str, data_dir: Path, client: str, overrides: Mapping[str, Any], window_s: float = 3600
) -> Settings:
    """Settings of one measurement. All that is not speed stands at its default."""
    return make_settings(
        {
            "data_dir": data_dir,
            "kafka": {"bootstrap_servers": broker, "client": client, "items_topic": f"{topic}.items"},
            "streaming": TUNING[client]
            | {"sources": [{"topic": topic}], "map_size_gib": MAP_SIZE_GIB, "windows": {"length_s": window_s}}
            | dict(overrides),
        }
    )


class IngestActors(Actors):
    """The actors without the catalogue's.

    That one loads a text encoder when it starts, which would take a core from a measurement of some seconds, and
    items are no part of what is measured.
    """

    ingestors_at = 0.0  # clock time at which the ingestors were about to be created

    def _actor(self, name: str, cls: type, cpus: float, *arguments: Any) -> Any:
        return None if cls is Cataloguer else super()._actor(name, cls, cpus, *arguments)

    def _start_ingestors(self) -> None:
        self.ingestors_at = time.time()
        super()._start_ingestors()


class Pipeline(AbstractContextManager["Pipeline"]):
    """The actors, running.

    Args:
        settings: from `bench_settings`.
        catalogue: run the catalogue actor as well.
    """

    def __init__(self, settings: Settings, catalogue: bool = False) -> None:
        self.settings, self._catalogue = settings, catalogue

    def __enter__(self) -> "Pipeline":
        ensure_topics(self.settings.kafka, [source.topic for source in self.settings.streaming.sources])
        start_ray(self.settings.data_dir)
        try:
            quiet()
            self._actors = Actors(self.settings) if self._catalogue else IngestActors(self.settings)
            self._actors.start()
        except BaseException:
            stop_ray()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kill_actors()
        stop_ray()

    @property
    def started_at(self) -> float:
        """Clock time before which no record was read."""
        return getattr(self._actors, "ingestors_at", 0.0)

    @property
    def ingestors(self) -> list[Any]:
        """Handles of the ingestors."""
        return list(self._actors.ingestors)

    def handed_over(self) -> int:
        """Records that the ingestors have handed to the shards so far."""
        answers = ray.get([actor.stats.remote() for actor in self.ingestors], timeout=CALL_TIMEOUT_S)
        return sum(stats.records for stats in answers)

    def errors(self) -> list[str]:
        """What the ingestors complain of now."""
        answers = ray.get([actor.stats.remote() for actor in self.ingestors], timeout=CALL_TIMEOUT_S)
        return [stats.error for stats in answers if stats.error]

    def totals(self) -> dict[str, int]:
        """Exact counts over all shards; answered behind what the shards have yet to apply."""
        answers = ray.get([actor.stats.remote() for actor in self._actors.shards], timeout=CALL_TIMEOUT_S)
        shards = [stats for answer in answers for stats in answer]
        names = ("applied", "duplicates", "dead_letters", "late", "users", "windows_closed")
        return {name: sum(getattr(stats, name) for stats in shards) for name in names}

    def pids(self) -> dict[str, int]:
        """Process ids of all actors, by name."""
        groups = {"ingestor": self.ingestors, "shard": self._actors.shards}
        if self._catalogue:
            groups["catalogue"] = [self._actors.cataloguer]
        return {
            f"{kind}-{index}": ray.get(actor.pid.remote(), timeout=START_TIMEOUT_S)
            for kind, actors in groups.items()
            for index, actor in enumerate(actors)
        }


def cpu_seconds(pids: Mapping[str, int]) -> dict[str, float]:
    """CPU time that each process has used since it started."""
    times = {name: psutil.Process(pid).cpu_times() for name, pid in pids.items()}
    return {name: used.user + used.system for name, used in times.items()}


def quiet(below_percent: float = 20.0, timeout_s: float = 20.0) -> float:
    """Wait until the machine has little to do, so that nobody's start-up is measured; returns its load in percent.

    A machine that does not become quiet is measured as it is: the figure goes into the report.
    """
    deadline, calm, load = time.monotonic() + timeout_s, 0, 100.0
    while calm < 3 and time.monotonic() < deadline:
        load = psutil.cpu_percent(interval=0.3)
        calm = calm + 1 if load < below_percent else 0
    return load


def wait_until(
    reached: Callable[[], bool], every_s: float, timeout_s: float, what: Callable[[], str]
) -> float:
    """Ask every so often; returns the clock time of the first yes.

    Raises:
        TimeoutError: it did not become true; the message is `what()`.
    """
    deadline = time.monotonic() + timeout_s
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what()} (waited {timeout_s:.0f} s)")
        time.sleep(every_s)  # between two looks, bounded by the deadline
    return time.time()
