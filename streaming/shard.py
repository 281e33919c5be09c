"""The shard actor: hosts a set of logical shards and applies what ingestors send.

Ray runs the calls of one caller in order, one at a time, so the stores need no locks. A killed actor is
started again by Ray and finds everything in LMDB; calls under way at that moment fail at the ingestor, which
rewinds.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from streaming.config import StreamingSettings
from streaming.rows import EventColumns, Int64, Rows
from streaming.state import Position, ShardBatch, ShardStats, ShardStore


@dataclass(frozen=True)
class ActorBatch:
    """One micro-batch of one partition, as one actor needs it: the header, and the events of its shards.

    Events are sorted by logical shard; those of `shards[i]` are `events[bounds[i]:bounds[i + 1]]`.
    """

    partition: int
    from_offset: int
    upto_offset: int
    max_time_ms: int
    idle: bool
    num_partitions: int
    windows: Int64
    window_offsets: Int64
    dead_letters: Int64
    after_loss: bool
    shards: tuple[int, ...]
    bounds: Int64
    events: EventColumns

    def part(self, index: int, num_shards: int) -> ShardBatch:
        """The batch of the `index`-th shard; dead letters go to the shard that counts this partition's."""
        counts_here = self.shards[index] == self.partition % num_shards
        return ShardBatch(
            partition=self.partition,
            from_offset=self.from_offset,
            upto_offset=self.upto_offset,
            max_time_ms=self.max_time_ms,
            idle=self.idle,
            num_partitions=self.num_partitions,
            windows=self.windows,
            window_offsets=self.window_offsets,
            dead_letters=self.dead_letters if counts_here else self.dead_letters[:0],
            events=self.events.take(slice(int(self.bounds[index]), int(self.bounds[index + 1]))),
            after_loss=self.after_loss,
        )


class Shard:
    """Hosts logical shards; meant to be a Ray actor with restarts.

    Args:
        data_dir: holds `state/` and `windows/`.
        shards: the logical shards hosted here.
        settings: streaming settings.
    """

    def __init__(self, data_dir: Path, shards: Sequence[int], settings: StreamingSettings) -> None:
        self._num_shards = settings.logical_shards
        self._stores = {
            shard: ShardStore(data_dir / "state", data_dir / "windows", shard, settings) for shard in shards
        }

    def apply(self, batch: ActorBatch) -> int:
        """Apply a batch to every shard hosted here; returns the number of events that changed state."""
        return sum(
            self._stores[shard].apply(batch.part(index, self._num_shards))
            for index, shard in enumerate(batch.shards)
        )

    def positions(self) -> list[dict[int, Position]]:
        """Applied position of each partition, per logical shard."""
        return [store.positions() for store in self._stores.values()]

    def stats(self) -> list[ShardStats]:
        """Exact counts, per logical shard."""
        return [store.stats() for store in self._stores.values()]

    def rows(self) -> Rows:
        """All rows hosted here, in order of user hash (for comparison and export; not for serving)."""
        rows = np.concatenate([store.rows() for store in self._stores.values()])
        return rows[np.argsort(rows["user"])]

    def pid(self) -> int:
        """Process id of this actor."""
        return os.getpid()

    def close(self) -> None:
        """Flush and close all stores."""
        for store in self._stores.values():
            store.close()
