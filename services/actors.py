"""The pipeline's actors: created where absent, found by name where present, moved when the layout changes.

All actors are named and detached: they outlive the supervisor's replica, and a new replica finds them by name.
Names carry a fingerprint of the settings; actors of other settings are stopped first. Partitions are assigned to
ingestors here, so there is no group rebalance.

A change of the layout: (1) the new one is written to its file; (2) ingestors end; (3) actors release the logical
shards that are not theirs any more; (4) actors open those that are; (5) ingestors start, enter the shards, and go on
from the lowest offset that one of them lacks. The state lies on the same disk or comes from a
snapshot, and what it lacks is read again, so nothing is lost or doubled wherever this stops.
"""

import hashlib
import logging
import time
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from services import layout
from services.layout import Hosting
from services.named import NAMESPACE, kill, logged, named_actors
from services.settings import Settings
from streaming.batcher import Layout, ShardRoute
from streaming.cataloguer import Cataloguer
from streaming.ingestor import Ingestor
from streaming.kafka import partitions_of_topics
from streaming.shard import Shard
from training.current_encoder import CurrentEncoder
from training.learner import Learner

log = logging.getLogger(__name__)

_STOP_TIMEOUT_S = 15.0
_HOST_TIMEOUT_S = 120.0  # a restore from a snapshot may be part of it


def fingerprint(settings: Settings) -> str:
    """Short name of the settings that the actors depend on."""
    parts = (
        settings.data_dir.resolve(),
        settings.kafka,
        settings.streaming,
        settings.training,
        settings.log,
    )
    return hashlib.blake2b(repr(parts).encode(), digest_size=4).hexdigest()


def kill_actors(keep: str | None = None) -> int:
    """Kill the pipeline's actors, but for those of the fingerprint `keep`; returns how many."""
    return sum(kill(name) for name in named_actors() if not (keep and name.startswith(f"{keep}-")))


class Actors:
    """Creates, finds, moves and stops the actors of these settings."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._prefix = fingerprint(settings)
        self._layout_file = settings.data_dir.resolve() / "layout.json"
        self.hosting: Hosting = layout.initial(settings.streaming)
        self.settled = False
        self.shards: list[Any] = []
        self.ingestors: list[Any] = []
        self.cataloguer: Any = None
        self.learner: Any = None
        self.parts: list[tuple[str, int]] = []

    def start(self) -> None:
        """Create or find all actors but the learner."""
        self.start_catalog()
        self.start_stream()

    def start_catalog(self) -> None:
        """Create or find the actor that keeps the catalogue and encodes its texts."""
        settings = self._settings
        kill_actors(keep=self._prefix)
        training, folder = settings.training, settings.data_dir.resolve()
        due = CurrentEncoder(folder / "models", training.text_encoder, training.encoder_pooling)
        arguments = settings.kafka, folder / "catalog", due, training.text_guard.guard
        self.cataloguer = self._actor("catalog", Cataloguer, 0.5, *arguments)

    def start_stream(self) -> None:
        """Create or find the shards and the ingestors, as the stored layout says."""
        kill_actors(keep=self._prefix)
        self.hosting = layout.load(self._layout_file, self._settings.streaming)
        self.parts = self._partitions()
        self.settled = False
        self.settle()

    def assign(self) -> bool:
        """Look for partitions that were added or have gone; True where that led to new ingestors."""
        parts = self._partitions()
        if parts == self.parts:
            return False
        log.info("partitions changed from %d to %d; the ingestors start anew", len(self.parts), len(parts))
        self.parts = parts
        self._change(layout.renumbered(self.hosting))
        return True

    def scale(self, shard_actors: int, ingestors: int) -> Hosting:
        """Run with other numbers of actors from now on.

        Raises:
            ValueError: these numbers cannot be.
        """
        self._change(layout.scaled(self.hosting, shard_actors, ingestors))
        return self.hosting

    def _change(self, hosting: Hosting) -> None:
        layout.save(self._layout_file, hosting)
        self.hosting, self.settled = hosting, False
        self.settle()

    def settle(self) -> None:
        """Make the actors what the layout says, where a change is not finished or one is gone for good.

        Ray starts a killed actor again, but none that failed while it was created, say because its creator died.
        Repeating this changes nothing.
        """
        gone = self._wanted_names() - set(named_actors()) if self.settled else None
        if gone:
            log.warning("%s will not come back by themselves; made anew", ", ".join(sorted(gone)))
            # under a new version, as ingestors hold handles of the shards that are gone
            self.hosting, self.settled = layout.renumbered(self.hosting), False
        if not self.settled:
            self._bring_about()
            self.settled = True

    def _wanted_names(self) -> set[str]:
        shards = {f"{self._prefix}-shard-{host}" for host in range(self.hosting.shard_actors)}
        ingestors = range(min(self.hosting.ingestors, len(self.parts)))
        return shards | {f"{self._prefix}-ingestor-{self.hosting.version}-{index}" for index in ingestors}

    def _partitions(self) -> list[tuple[str, int]]:
        topics = [source.topic for source in self._settings.streaming.sources]
        found = partitions_of_topics(self._settings.kafka, topics)
        return [(topic, number) for topic in topics for number in found[topic]]

    def _bring_about(self) -> None:
        layout.save(self._layout_file, self.hosting)
        hosting, prefix = self.hosting, self._prefix
        current = f"{prefix}-ingestor-{hosting.version}-"
        self._stop_ingestors(
            [n for n in named_actors() if n.startswith(f"{prefix}-ingestor-") and not n.startswith(current)]
        )
        data_dir = self._settings.data_dir.resolve()
        self.shards = [
            self._actor(f"shard-{host}", Shard, 0.5, data_dir, self._settings.streaming)
            for host in range(hosting.shard_actors)
        ]
        surplus = [
            name
            for name in named_actors()
            if name.startswith(f"{prefix}-shard-") and int(name.rsplit("-", 1)[1]) >= hosting.shard_actors
        ]
        for name in surplus:
            self._release(name)
        kept = ray.get([shard.hosted.remote() for shard in self.shards], timeout=_HOST_TIMEOUT_S)
        for narrowed in (True, False):  # release first, then open
            calls = [
                shard.host.remote(tuple(s for s in mine if not narrowed or s in before), hosting.version)
                for shard, mine, before in zip(self.shards, hosting.shards, kept, strict=True)
            ]
            ray.get(calls, timeout=_HOST_TIMEOUT_S)
        self._start_ingestors()

    def _start_ingestors(self) -> None:
        hosting = self.hosting
        routes = tuple(
            ShardRoute(actor, shards) for actor, shards in zip(self.shards, hosting.shards, strict=True)
        )
        count = min(hosting.ingestors, len(self.parts))
        self.ingestors = [
            self._actor(
                f"ingestor-{hosting.version}-{index}",
                Ingestor,
                0.5,
                self._settings.kafka,
                self._settings.streaming,
                self.parts[index::count],
                self.parts,
                Layout(hosting.version, routes),
            )
            for index in range(count)
        ]

    def _stop_ingestors(self, names: list[str]) -> None:
        """Let ingestors end by themselves; what hangs is killed."""
        asked = {}
        for name in names:
            try:
                asked[name] = ray.get_actor(name, namespace=NAMESPACE).stop.remote()
            except ValueError:
                continue
        if asked:
            ray.wait(list(asked.values()), num_returns=len(asked), timeout=_STOP_TIMEOUT_S)
        for name in names:
            kill(name)
        self._wait_gone(names)

    def _release(self, name: str) -> None:
        try:
            actor = ray.get_actor(name, namespace=NAMESPACE)
            ray.get(actor.close.remote(), timeout=_HOST_TIMEOUT_S)
        except (ValueError, RayActorError, GetTimeoutError) as error:
            log.warning("%s did not release its shards by itself: %s", name, error)
        kill(name)
        self._wait_gone([name])

    @staticmethod
    def _wait_gone(names: list[str]) -> None:
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while set(names) & set(named_actors()) and time.monotonic() < deadline:
            time.sleep(0.02)

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
        remote = ray.remote(logged(cls, self._settings.log, name)).options(
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
