"""The Supervisor: one replica that creates, watches, rescales and replaces everything that is not serving.

Ray restarts a dead shard, ingestor or catalogue actor by itself, with the same arguments; the Supervisor
notices actors that stay gone, partitions that were added, lag that asks for more actors, and a learner that ended;
brings the shards the trust of their users (`services.trust_push`), and decides about canaries (`services.canary`).
"""

import logging
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError

from services import layout
from services.actors import Actors, fingerprint
from services.attack_simulation import AttackSimulation
from services.autoscale import Autoscaler
from services.canary import CanaryWatch
from services.exporters import Exporters
from services.pipeline_meter import PipelineMeter
from services.recent_users import RecentUsers
from services.samples import Samples
from services.settings import Settings
from services.trust_push import TrustPush
from streaming import logs
from streaming.backup.snapshotter import SnapshotStats
from streaming.kafka import ensure_topics
from streaming.rows import NEVER
from streaming.state import ShardStats
from streaming.windows import iso
from training.learner import read_status
from training.registry import Registry

log = logging.getLogger(__name__)

_TICK_S = 0.5
_CALL_TIMEOUT_S = 10.0
_PARTITIONS_EVERY_S = 10.0
_LEARNER_RETRY_S = 5.0
_LEARNER_WELL_S = 60.0  # a run that lasts this long has got over what ended the one before


@dataclass
class _Rate:
    """Events per second over the last few seconds."""

    seen: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=11))

    def update(self, total: int) -> float:
        self.seen.append((time.monotonic(), total))
        (start, first), (end, last) = self.seen[0], self.seen[-1]
        return (last - first) / (end - start) if end > start else 0.0


class Supervisor:
    """Runs the pipeline from a thread of its own and answers what state it is in.

    Args:
        settings: the whole tree; `data_dir` is made absolute.
    """

    def __init__(self, settings: Settings) -> None:
        logs.configure(settings.log, "supervisor")
        self._settings = settings
        self._actors = Actors(settings)
        self._registry = Registry(settings.data_dir / "models")
        self._canary = CanaryWatch(self._registry, settings.serving.canary)
        self._exporters = Exporters(settings.metrics, settings.log, fingerprint(settings))
        self._meter = PipelineMeter(settings.data_dir, self._registry)
        self._status: dict[str, Any] = {"phase": "starting", "actors": {}}
        self._rate = _Rate()
        self._problems: dict[str, str] = {}
        self._autoscaler = Autoscaler(settings.streaming.autoscale)
        self._wanted: tuple[int, int] | None = None  # shard actors, ingestors: asked for, not begun
        window_ms = int(settings.streaming.windows.length_s * 1000)
        self._trust = TrustPush(settings.data_dir.resolve(), window_ms, _CALL_TIMEOUT_S)
        self._shard_stats: list[ShardStats] = []
        self._samples, self._recent_users = Samples(), RecentUsers(settings)
        self._attack = AttackSimulation(settings)
        self._stop, self._wake = threading.Event(), threading.Event()
        self._learner_run: Any = None
        self._learner_retry_at = self._learner_well_at = 0.0
        self._thread = threading.Thread(target=self._run, name="supervisor", daemon=True)
        self._thread.start()

    def status(self) -> dict[str, Any]:
        """Counts, lag and health of the pipeline; never older than a few seconds."""
        return self._status

    def scale(self, shard_actors: int | None = None, ingestors: int | None = None) -> dict[str, Any]:
        """Run with other numbers of actors; the watch moves the shards, which `status()["layout"]` then shows.

        Raises:
            ValueError: these numbers cannot be.
        """
        hosting = self._actors.hosting
        wanted = (
            hosting.shard_actors if shard_actors is None else shard_actors,
            hosting.ingestors if ingestors is None else ingestors,
        )
        layout.scaled(hosting, *wanted)  # refuses what cannot be
        self._wanted = wanted
        self._wake.set()
        return {"shard_actors": wanted[0], "ingestors": wanted[1], "version": hosting.version + 1}

    def history(self) -> dict[str, Any]:
        """The last minutes in columns; see `services.samples`."""
        return self._samples.columns()

    def recent_users(self, count: int) -> dict[str, list[str]]:
        """Users whom the newest events are of; see `services.recent_users`."""
        return {"users": self._recent_users.newest(count)}

    def attack(self, order: dict[str, Any]) -> dict[str, int]:
        """Send fake users; see `services.attack_simulation`.

        Raises:
            ValueError: an attack is under way.
        """
        return {"number": self._attack.begin(order)}

    def stop(self) -> None:
        """Stop watching; the actors stay."""
        self._stop.set()
        self._wake.set()
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
                self._canary.look()
                self._watch_learner()
                if time.monotonic() - checked_at > _PARTITIONS_EVERY_S:
                    checked_at = time.monotonic()
                    self._actors.assign()
                self._rescale()
                self._exporters.look()
                self._status = self._observe()
                self._samples.take(self._status)
                self._trust.push(self._actors.shards, self._shard_stats)
                self._meter.tell(self._status, self._states())
            except Exception as error:  # one bad round must not end the watch
                log.exception("supervisor round failed")
                self._status = self._status | {"error": f"{type(error).__name__}: {error}"}
            self._wake.wait(_TICK_S)
            self._wake.clear()

    def _rescale(self) -> None:
        """Carry out what was asked for by hand or by lag, or what a failure left half done."""
        hosting = self._actors.hosting
        wanted, self._wanted = self._wanted, None
        if wanted is None:
            actors = max(hosting.shard_actors, hosting.ingestors)
            count = self._autoscaler.wanted(self._status.get("lag", 0), actors, time.monotonic())
            if count != actors:
                wanted = min(count, self._settings.streaming.logical_shards), count
        if wanted is not None and wanted != (hosting.shard_actors, hosting.ingestors):
            log.info(
                "from %d shard actors and %d ingestors to %d and %d",
                hosting.shard_actors,
                hosting.ingestors,
                *wanted,
            )
            self._actors.scale(*wanted)
        self._actors.settle()

    def _watch_learner(self) -> None:
        if self._learner_run is None:
            if time.monotonic() >= self._learner_retry_at:
                self._learner_run = self._actors.start_learner()
                self._learner_well_at = time.monotonic() + _LEARNER_WELL_S
            return
        done, _ = ray.wait([self._learner_run], timeout=0)
        if not done and time.monotonic() >= self._learner_well_at:
            self._problems.pop("learner", None)
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
        self._shard_stats = shards
        ingestors = self._ask(states, "ingestor", actors.ingestors, "stats")
        snapshots = self._ask(states, "shard", actors.shards, "snapshot_stats")
        catalog = self._ask(states, "catalog", [actors.cataloguer], "status")
        total = {
            name: sum(getattr(shard, name) for shard in shards)
            for name in (
                "users",
                "applied",
                "duplicates",
                "late",
                "dead_letters",
                "erasures",
                "erased",
                "expired",
            )
        }
        complete = len(shards) == self._settings.streaming.logical_shards
        previous = self._status
        return {
            "phase": "running",
            "events": {
                "applied": total["applied"],
                "duplicates": total["duplicates"],
                "dead_lettered": total["dead_letters"],
                "late": total["late"],
                "erased": total["erased"],
                "rate_per_s": round(self._rate.update(total["applied"]), 1),
            }
            if complete
            else previous.get("events", {}),
            "lag": sum(stats.lag for stats in ingestors),
            "lost": sum(stats.lost for stats in ingestors),
            "rewinds": sum(stats.rewinds for stats in ingestors),
            "users": total["users"],
            "erasures": total["erasures"],
            "expired": total["expired"],
            "layout": {
                "version": actors.hosting.version,
                "shard_actors": actors.hosting.shard_actors,
                "ingestors": len(actors.ingestors),
                "settled": actors.settled,
            },
            "snapshots": snapshot_summary(snapshots),
            "windows": min((shard.windows_closed for shard in shards), default=0),
            "trust": {"screened": _screened_upto(shards)},
            "catalog": asdict(catalog[0]) if catalog else {"items": 0, "encoded": 0},
            "learner": read_status(self._settings.data_dir),
            "models": self._registry.counts(),
            "canary": self._canary.status(),
            "attack": self._attack.status(),
            "actors": states,
            "metrics": self._exporters.status(),
            "problems": self._problems
            | _errors(ingestors, catalog, snapshots)
            | self._exporters.problems()
            | ({"trust": self._trust.problem} if self._trust.problem else {})
            | ({"canary": self._canary.problem} if self._canary.problem else {}),
            "observed_at": time.time(),
        }

    def _states(self) -> dict[str, str]:
        """up or down, of all actors by name."""
        states: dict[str, str] = dict(self._status["actors"])
        states["learner"] = "down" if self._learner_run is None else "up"
        return states | self._exporters.states()

    def _ask(self, states: dict[str, str], kind: str, actors: list[Any], method: str) -> list[Any]:
        """All are asked at once, so that one that hangs costs a round ten seconds and not each of them."""
        answers = []
        asked = [getattr(actor, method).remote() for actor in actors]
        deadline = time.monotonic() + _CALL_TIMEOUT_S
        for index, answer in enumerate(asked):
            try:
                answers.append(ray.get(answer, timeout=max(0.1, deadline - time.monotonic())))
                states[f"{kind}-{index}"] = "up"
            except (RayActorError, GetTimeoutError) as error:
                states[f"{kind}-{index}"] = "down"
                log.warning("%s-%d does not answer: %s", kind, index, error)
        return answers


def _errors(ingestors: list[Any], catalog: list[Any], snapshots: list[Any]) -> dict[str, str]:
    found = {f"ingestor-{index}": stats.error for index, stats in enumerate(ingestors) if stats.error}
    found |= {f"snapshots-{index}": stats.error for index, stats in enumerate(snapshots) if stats.error}
    return found | ({"catalog": catalog[0].error} if catalog and catalog[0].error else {})


def _screened_upto(shards: list[ShardStats]) -> str | None:
    """Newest window whose screen is in the rows of all shards."""
    newest = min((shard.screened_ms for shard in shards), default=NEVER)
    return None if newest == NEVER else iso(newest)


def snapshot_summary(stats: list[SnapshotStats]) -> dict[str, Any]:
    """Snapshots of all shards together; `oldest_age_s` is what a lost node would have to read again."""
    oldest = [one.oldest_at for one in stats if one.oldest_at is not None]
    return {
        "taken": sum(one.taken for one in stats),
        "failed": sum(one.failed for one in stats),
        "restored": sum(one.restored for one in stats),
        "bytes": sum(one.bytes for one in stats),
        "seconds": round(sum(one.seconds for one in stats), 3),
        "oldest_age_s": round(time.time() - min(oldest), 1) if oldest else None,
    }
