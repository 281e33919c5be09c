"""Takes the snapshots of the shards that an actor hosts, on a schedule, from a thread beside its work.

LMDB readers do not block its writer, so a copy is of one instant and costs the stream only the time that the
cores lack. The thread opens each environment anew, so a shard may be released while it is being copied.
"""

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from streaming import environment, metrics
from streaming.backup.snapshots import SnapshotStore
from streaming.config import StreamingSettings
from streaming.errors import StreamingError
from streaming.layout import shard_path, store_layout
from streaming.meters import since

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class SnapshotStats:
    """Snapshots of the shards hosted by one actor, since it started."""

    taken: int = 0
    failed: int = 0
    restored: int = 0
    bytes: int = 0  # of the newest ones, as stored
    seconds: float = 0.0  # that the newest ones took together
    oldest_at: float | None = None  # of each shard's newest, the oldest; epoch s
    error: str | None = None


class Snapshotter:
    """Snapshots on a schedule; does nothing where `snapshots.url` is not set.

    Args:
        state_dir: folder of all shards.
        settings: streaming settings.
    """

    def __init__(self, state_dir: Path, settings: StreamingSettings) -> None:
        self._state_dir, self._settings = state_dir, settings
        snapshots = settings.snapshots
        self._store = SnapshotStore(snapshots) if snapshots.url is not None else None
        if self._store is not None:
            for outcome in metrics.SNAPSHOT_OUTCOMES:
                metrics.SNAPSHOTS.labels(outcome)  # a zero that is told
        self._due: dict[int, float] = {}
        self._newest: dict[int, tuple[float, int, float]] = {}  # shard: (time, bytes, seconds)
        self._stats = SnapshotStats()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def follow(self, shards: Sequence[int]) -> None:
        """Take snapshots of these shards from now on; the first ones are spread over one period."""
        if self._store is None:
            return
        every_s, now = self._settings.snapshots.every_s, time.monotonic()
        with self._lock:
            for place, shard in enumerate(shards):
                self._due.setdefault(shard, now + every_s * (place + 1) / len(shards))
        if self._thread is None and shards:
            self._thread = threading.Thread(target=self._run, name="snapshots", daemon=True)
            self._thread.start()

    def drop(self, shard: int) -> None:
        """Take no more snapshots of a shard."""
        with self._lock:
            self._due.pop(shard, None)
            self._newest.pop(shard, None)
            self._tell_age()

    def restore_if_empty(self, shard: int) -> None:
        """Fill a shard without state from its newest snapshot, if there is one.

        Raises:
            SnapshotError: the store cannot be read.
        """
        folder = shard_path(self._state_dir, shard)
        if self._store is None or (folder / "data.mdb").exists():
            return
        info = self._store.restore(shard, folder)
        if info is not None:
            metrics.SNAPSHOTS.labels("restored").inc()
            log.info("shard %d: restored from the snapshot of %s", shard, info.taken_at)
            with self._lock:
                self._stats = replace(self._stats, restored=self._stats.restored + 1)

    def take_all(self) -> int:
        """Take a snapshot of every shard now, in the calling thread; returns how many.

        Raises:
            SnapshotError: one could not be stored.
        """
        with self._lock:
            shards = list(self._due)
        for shard in shards:
            self._take(shard)
        return len(shards)

    def stats(self) -> SnapshotStats:
        """Sizes, times and failures."""
        with self._lock:
            newest = list(self._newest.values())
            return replace(
                self._stats,
                bytes=sum(size for _, size, _ in newest),
                seconds=sum(seconds for _, _, seconds in newest),
                oldest_at=min((at for at, _, _ in newest), default=None),
            )

    def _run(self) -> None:
        while not self._stop.wait(_LOOK_EVERY_S):
            with self._lock:
                due = [shard for shard, at in self._due.items() if time.monotonic() >= at]
            for shard in due:
                try:
                    self._take(shard)
                except StreamingError as error:  # the stream goes on; the next period tries again
                    log.warning("shard %d: no snapshot: %s", shard, error)
                    metrics.SNAPSHOTS.labels("failed").inc()
                    with self._lock:
                        self._stats = replace(self._stats, failed=self._stats.failed + 1, error=str(error))
                with self._lock:
                    if shard in self._due:
                        self._due[shard] = time.monotonic() + self._settings.snapshots.every_s

    def _take(self, shard: int) -> None:
        assert self._store is not None
        env = environment.open_reader(shard_path(self._state_dir, shard))
        if env is None:
            return
        try:
            info = self._store.save(env, shard, store_layout(self._settings))
            self._store.prune(shard)
        finally:
            environment.close(env)
        with self._lock:
            self._stats = replace(self._stats, taken=self._stats.taken + 1, error=None)
            if shard in self._due:
                self._newest[shard] = (time.time(), info.bytes, info.copy_s + info.upload_s)
            self._tell_age()
        metrics.SNAPSHOTS.labels("taken").inc()
        metrics.SNAPSHOT_SECONDS.observe(info.copy_s + info.upload_s)

    def _tell_age(self) -> None:
        since(metrics.SNAPSHOT_AGE_SECONDS, min((at for at, _, _ in self._newest.values()), default=None))
