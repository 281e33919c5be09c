"""The Supervisor: one replica that creates, watches and replaces everything that is not serving.

It assigns partitions to ingestors itself, so there is no group rebalance, and hosts the logical shards on a
number of actors. All actors are named and detached: they outlive this replica, and a new replica finds them by
name. Their names carry a fingerprint of the settings; actors of other settings are stopped first.

Ray restarts a dead shard, ingestor or catalogue actor by itself, with the same arguments; the Supervisor
notices actors that stay gone, partitions that were added, and a learner that ended.
"""

import hashlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from services.settings import Settings
from streaming.cataloguer import Cataloguer, Encoder
from streaming.ingestor import Ingestor, ShardRoute
from streaming.kafka import ensure_topics, partitions_of
from streaming.shard import Shard
from training.learner import Learner, read_status
from training.registry import Registry

log = logging.getLogger(__name__)

NAMESPACE = "headrace"
_TICK_S = 0.5
_CALL_TIMEOUT_S = 10.0
_PARTITIONS_EVERY_S = 30.0
_LEARNER_RETRY_S = 5.0


def fingerprint(settings: Settings) -> str:
    """Short name of the settings that the actors depend on."""
    parts = (settings.data_dir.resolve(), settings.kafka, settings.streaming, settings.training)
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


def kill_actors(keep: str | None = None) -> int:
    """Kill the pipeline's actors, but for those of the fingerprint `keep`; returns how many."""
    killed = 0
    for actor in ray.util.list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and not (keep and actor["name"].startswith(f"{keep}-")):
            try:
                ray.kill(ray.get_actor(actor["name"], namespace=NAMESPACE))
                killed += 1
            except ValueError:
                continue  # it ended by itself in between
    return killed


def packaged_encoder(name: str) -> Encoder:
    """Load the text encoder of that name or folder, on one thread: it runs beside serving."""
    import torch

    from training.encoder import load_text_encoder

    torch.set_num_threads(1)
    encoder: Encoder = load_text_encoder(name)
    return encoder


@dataclass
class _Rate:
    """Events per second over the last few seconds."""

    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=11))

    def update(self, total: int) -> float:
        self.seen.append((time.monotonic(), total))
        (start, first), (end, last) = self.seen[0], self.seen[-1]
        return (last - first) / (end - start) if end > start else 0.0


class Actors:
    """The pipeline's actors: created where absent, found by name where present."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = fingerprint(settings)
        self.shards: list[Any] = []
        self.routes: list[ShardRoute] = []
        self.ingestors: list[Any] = []
        self.cataloguer: Any = None
        self.learner: Any = None
        self.num_partitions = 0

    def start(self) -> None:
        """Create or find all actors but the learner."""
        settings = self._settings
        kill_actors(keep=self._prefix)
        streaming, data_dir = settings.streaming, settings.data_dir.resolve()
        hosts = min(streaming.shard_actors, streaming.logical_shards)
        hosted = [tuple(range(host, streaming.logical_shards, hosts)) for host in range(hosts)]
        self.shards = [
            self._actor(f"shard-{host}", Shard, 0.5, data_dir, shards, streaming)
            for host, shards in enumerate(hosted)
        ]
        self.routes = [ShardRoute(actor, shards) for actor, shards in zip(self.shards, hosted, strict=True)]
        name = settings.training.text_encoder
        self.cataloguer = self._actor(
            "catalog",
            Cataloguer,
            0.5,
            settings.kafka,
            data_dir / "catalog",
            _call(packaged_encoder, name),
        )
        self.assign()

    def assign(self) -> bool:
        """Give every partition of the events topic to an ingestor; True when that changed."""
        kafka, streaming = self._settings.kafka, self._settings.streaming
        partitions = partitions_of(kafka, kafka.events_topic)
        if not partitions or (self.ingestors and len(partitions) == self.num_partitions):
            return False
        for ingestor in self.ingestors:
            ray.kill(ingestor)
        self.num_partitions = len(partitions)
        count = min(streaming.ingestors, len(partitions))
        self.ingestors = [
            self._actor(
                f"ingestor-{len(partitions)}-{index}",
                Ingestor,
                0.5,
                kafka,
                streaming,
                partitions[index::count],
                len(partitions),
                self.routes,
            )
            for index in range(count)
        ]
        return True

    def start_learner(self) -> Any:
        """Create or find the learner and start its run; returns the reference of that run."""
        settings = self._settings
        self.learner = self._actor(
            "learner", Learner, 0.1, settings.data_dir.resolve(), settings.streaming, settings.training
        )
        return self.learner.run.remote()

    def drop_learner(self) -> None:
        """Forget a learner that ended, so that the next one is a new process."""
        if self.learner is not None:
            ray.kill(self.learner)
            self.learner = None

    def _actor(self, name: str, cls: type, cpus: float, *arguments: Any) -> Any:
        remote = ray.remote(cls).options(
            name=f"{self._prefix}-{name}",
            namespace=NAMESPACE,
            lifetime="detached",
            get_if_exists=True,
            max_restarts=-1,
            max_task_retries=0,
            max_concurrency=4 if name == "learner" else 1,
            num_cpus=cpus,
        )
        return remote.remote(*arguments)


class Supervisor:
    """Runs the pipeline from a thread of its own and answers what state it is in.

    Args:
        settings: the whole tree; `data_dir` is made absolute.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._actors = Actors(settings)
        self._registry = Registry(settings.data_dir / "models")
        self._status: dict[str, Any] = {"phase": "starting", "actors": {}}
        self._rate = _Rate()
        self._problems: dict[str, str] = {}
        self._stop = threading.Event()
        self._learner_run: Any = None
        self._learner_retry_at = 0.0
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """Counts, lag and health of the pipeline; never older than a few seconds."""
        return self._status

    def stop(self) -> None:
        """Stop watching; the actors stay."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                ensure_topics(
                    self._settings.kafka, [source.topic for source in self._settings.streaming.sources]
                )
                self._actors.start()
                break
            except Exception as error:  # the broker may come up after us
                log.exception("the pipeline could not be started; trying again in 2 s")
                self._status = self._status | {"phase": "starting", "error": str(error)}
                self._stop.wait(2)
        checked_at = time.monotonic()
        while not self._stop.is_set():
            try:
                self._watch_learner()
                if time.monotonic() - checked_at > _PARTITIONS_EVERY_S:
                    checked_at = time.monotonic()
                    self._actors.assign()
                self._status = self._observe()
            except Exception as error:  # one bad round must not end the watch
                log.exception("supervisor round failed")
                self._status = self._status | {"error": f"{type(error).__name__}: {error}"}
            self._stop.wait(_TICK_S)

    def _watch_learner(self) -> None:
        if self._learner_run is None:
            if time.monotonic() >= self._learner_retry_at:
                self._learner_run = self._actors.start_learner()
            return
        done, _ = ray.wait([self._learner_run], timeout=0)
        if done:
            try:
                ray.get(done[0], timeout=1)
                reason = "the learner's run ended"
            except RayError as error:
                reason = f"{type(error).__name__}: {error}"
            log.error("%s; a new one starts in %.0f s", reason, _LEARNER_RETRY_S)
            self._problems["learner"] = reason[-2000:]
            self._learner_run = None
            self._learner_retry_at = time.monotonic() + _LEARNER_RETRY_S
            self._actors.drop_learner()

    def _observe(self) -> dict[str, Any]:
        actors = self._actors
        states: dict[str, str] = {}
        shards = [s for answer in self._ask(states, "shard", actors.shards, "stats") for s in answer]
        ingestors = self._ask(states, "ingestor", actors.ingestors, "stats")
        catalog = self._ask(states, "catalog", [actors.cataloguer], "status")
        total = {
            name: sum(getattr(shard, name) for shard in shards)
            for name in ("users", "applied", "duplicates", "late", "dead_letters")
        }
        complete = bool(shards) and "down" not in states.values()
        previous = self._status
        return {
            "phase": "running",
            "events": {
                "applied": total["applied"],
                "duplicates": total["duplicates"],
                "dead_lettered": total["dead_letters"],
                "late": total["late"],
                "rate_per_s": round(self._rate.update(total["applied"]), 1),
            }
            if complete
            else previous.get("events", {}),
            "lag": sum(stats.lag for stats in ingestors),
            "lost": sum(stats.lost for stats in ingestors),
            "rewinds": sum(stats.rewinds for stats in ingestors),
            "users": total["users"],
            "windows": min((shard.windows_closed for shard in shards), default=0),
            "catalog": asdict(catalog[0]) if catalog else {"items": 0, "encoded": 0},
            "learner": read_status(self._settings.data_dir),
            "models": self._registry.counts(),
            "actors": states,
            "problems": self._problems | _errors(ingestors, catalog),
            "observed_at": time.time(),
        }

    def _ask(self, states: dict[str, str], kind: str, actors: list[Any], method: str) -> list[Any]:
        answers = []
        for index, actor in enumerate(actors):
            try:
                answers.append(ray.get(getattr(actor, method).remote(), timeout=_CALL_TIMEOUT_S))
                states[f"{kind}-{index}"] = "up"
            except (RayActorError, GetTimeoutError) as error:
                states[f"{kind}-{index}"] = "down"
                log.warning("%s-%d does not answer: %s", kind, index, error)
        return answers


def _errors(ingestors: list[Any], catalog: list[Any]) -> dict[str, str]:
    found = {f"ingestor-{index}": stats.error for index, stats in enumerate(ingestors) if stats.error}
    return found | ({"catalog": catalog[0].error} if catalog and catalog[0].error else {})


def _call(function: Callable[[str], Encoder], name: str) -> Callable[[], Encoder]:
    """A picklable call without arguments."""
    import functools

    return functools.partial(function, name)
