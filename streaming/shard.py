"""The shard actor: hosts a set of logical shards and applies what ingestors send.

Ray runs the calls of one caller in order, one at a time, so the stores need no locks. A killed actor is
started again by Ray, hosts nothing at first, and refuses what comes; the ingestor then enters again, which names
the logical shards to host. So nobody but the newest layout decides who hosts what, and a shard is never open
twice (see `streaming.state` for the lock that makes sure of it).
"""

import logging
import os
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streaming.backup.snapshotter import SnapshotStats, Snapshotter
from streaming.batch import ActorBatch, Position
from streaming.config import StreamingSettings
from streaming.errors import FencedError, StoreError
from streaming.hashing import UInt64
from streaming.rows import Rows
from streaming.shard_meter import ShardMeter
from streaming.state import ShardStats, ShardStore
from streaming.traces import make_tracer
from streaming.trust_rows import Float32

log = logging.getLogger(__name__)

_EXPIRE_EVERY_S = 1.0
_RELEASE_TIMEOUT_S = 15.0
_RETRY_S = 0.1


@dataclass(frozen=True)
class Entered:
    """What an ingestor is told when it enters."""

    epoch: int
    positions: dict[int, dict[int, Position]]  # logical shard: partition code: position


class Shard:
    """Hosts logical shards; meant to be a Ray actor with restarts.

    Args:
        data_dir: holds `state/` and `windows/`.
        settings: streaming settings.
    """

    def __init__(self, data_dir: Path, settings: StreamingSettings) -> None:
        self._data_dir, self._settings = data_dir, settings
        self._num_shards = settings.logical_shards
        self._stores: dict[int, ShardStore] = {}
        self._version = -1
        self._epochs: dict[int, int] = {}  # partition code: epoch of the ingestor that reads it
        self._newest_epoch = time.time_ns()  # above those of an earlier process of this actor
        self._expired_at = time.monotonic()
        self._snapshotter = Snapshotter(data_dir / "state", settings)
        self._meter = ShardMeter()
        self._tracer = make_tracer(settings.traces, "shard")

    def host(self, shards: Sequence[int], version: int) -> None:
        """Host exactly these logical shards, as the layout of this version says; an older one is refused.

        A shard without state is restored from its newest snapshot, where there is one.

        Raises:
            FencedError: a newer layout is known here.
            StoreError: another process did not release a shard in time.
        """
        if version < self._version:
            raise FencedError(f"layout {version} is older than layout {self._version}; ask the supervisor")
        if version > self._version:
            self._version = version
            self._epochs.clear()  # whatever is still on its way was sent under an older layout
        for shard in sorted(self._stores.keys() - set(shards)):
            self._snapshotter.drop(shard)
            self._stores.pop(shard).close()
        deadline = time.monotonic() + _RELEASE_TIMEOUT_S
        for shard in shards:
            if shard not in self._stores:
                self._stores[shard] = self._open(shard, deadline)
        self._snapshotter.follow(list(shards))
        self._meter.follow(self._stores)

    def hosted(self) -> tuple[int, ...]:
        """The logical shards hosted here."""
        return tuple(self._stores)

    def _open(self, shard: int, deadline: float) -> ShardStore:
        released = threading.Event()  # never set: only its wait is used
        while True:
            try:
                self._snapshotter.restore_if_empty(shard)
                return ShardStore(self._data_dir / "state", self._data_dir / "windows", shard, self._settings)
            except StoreError as error:
                if "is hosted by" not in str(error) or time.monotonic() > deadline:
                    raise
                released.wait(_RETRY_S)

    def enter(self, shards: Sequence[int], version: int, partitions: Sequence[int]) -> Entered:
        """Let an ingestor in as the only one that reads these partitions, and tell it how far they are applied.

        Raises:
            FencedError, StoreError: see `host`.
        """
        self.host(shards, version)
        self._newest_epoch += 1
        for partition in partitions:
            self._epochs[partition] = self._newest_epoch
        return Entered(
            self._newest_epoch,
            self.positions(),
        )

    def apply(self, batch: ActorBatch) -> int:
        """Apply a batch to every shard hosted here; returns the number of events that changed state.

        Raises:
            FencedError: it comes from an ingestor that did not enter here, or was replaced since.
            GapError: it starts past what is applied.
        """
        entered = {self._epochs.get(step.partition) for step in batch.whole.steps}
        if entered != {batch.epoch} or set(batch.shards) != self._stores.keys():
            raise FencedError(
                f"the batch was sent under epoch {batch.epoch} for {len(batch.shards)} shards, here its "
                f"partitions are of {entered} and there are {len(self._stores)} shards; enter again"
            )
        began, began_ms = time.perf_counter(), time.time() * 1000
        changed = sum(
            self._stores[shard].apply(batch.part(index, self._num_shards))
            for index, shard in enumerate(batch.shards)
        )
        self._meter.applied(self._stores, time.perf_counter() - began, len(batch.whole.events))
        if self._tracer is not None:
            for event in batch.traced:
                span = self._tracer.begin("apply", event.parent, start_ms=began_ms)
                span.end({"shard": event.shard, "batch.events": len(batch.whole.events)})
        if time.monotonic() - self._expired_at > _EXPIRE_EVERY_S:
            self._expired_at = time.monotonic()
            for store in self._stores.values():
                store.expire()
        return changed

    def set_trust(self, window_start_ms: int, users: UInt64, trust: Float32) -> int:
        """Give the screen of a window to every shard hosted here; see `ShardStore.set_trust`."""
        return sum(store.set_trust(window_start_ms, users, trust) for store in self._stores.values())

    def set_decided(self, upto: int, users: UInt64, trust: Float32) -> int:
        """Give people's decisions to every shard hosted here; see `ShardStore.set_decided`."""
        return sum(store.set_decided(upto, users, trust) for store in self._stores.values())

    def positions(self) -> dict[int, dict[int, Position]]:
        """How far each partition is applied, per logical shard."""
        return {shard: store.positions() for shard, store in self._stores.items()}

    def stats(self) -> list[ShardStats]:
        """Exact counts, per logical shard."""
        stats = [store.stats() for store in self._stores.values()]
        self._meter.look(self._stores, stats)
        return stats

    def snapshot_stats(self) -> SnapshotStats:
        """What the snapshots of this actor cost, and how old the newest are."""
        return self._snapshotter.stats()

    def snapshot(self) -> int:
        """Take a snapshot of every shard hosted here now; returns how many."""
        return self._snapshotter.take_all()

    def rows(self) -> Rows:
        """All rows hosted here, in order of user hash (for comparison and export; not for serving)."""
        rows = np.concatenate([store.rows() for store in self._stores.values()])
        return rows[np.argsort(rows["user"])]

    def pid(self) -> int:
        """Process id of this actor."""
        return os.getpid()

    def close(self) -> None:
        """Release all shards."""
        self.host((), self._version)
