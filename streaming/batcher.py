"""From decoded events of some partitions to one message per shard actor.

Which window an event counts into is decided here from the partition's log alone (the newest event time
before it), so that it does not depend on where batches begin and end. Only records after a silence through which
windows were closed are kept out of those by the floor of their partition.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from streaming.batch import ActorBatch, Progress, ShardBatch
from streaming.config import StreamingSettings
from streaming.intake import Decoded
from streaming.rows import NEVER, EventColumns, Int64
from streaming.windows import window_of


@dataclass(frozen=True)
class ShardRoute:
    """A shard actor and the logical shards it hosts."""

    actor: Any  # ray actor handle of streaming.shard.Shard
    shards: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """Who hosts what; the supervisor numbers every change."""

    version: int
    routes: tuple[ShardRoute, ...]


@dataclass
class Cursor:
    """Where an ingestor stands in one partition."""

    code: int  # of the partition, see streaming.batch
    next_offset: int
    generation: int = 0  # of its topic, see Position
    max_time_ms: int = NEVER
    floors: tuple[
        tuple[int, int], ...
    ] = ()  # (offset, end): records past it count into windows from `end` on
    after_loss: bool = False
    idle: bool = False  # as the shards were told last
    last_record_at: float = field(default_factory=time.monotonic)
    last_sent_at: float = 0.0
    end: int | None = None  # end of the partition, when last asked


class Batcher:
    """Makes messages; keeps nothing.

    Args:
        settings: streaming settings.
        partitions: codes of all partitions that windows wait for.
        layout: who hosts which logical shards.
        epochs: what each actor of the layout gave this ingestor, in its order.
    """

    def __init__(
        self, settings: StreamingSettings, partitions: Sequence[int], layout: Layout, epochs: Sequence[int]
    ) -> None:
        self._num_shards = settings.logical_shards
        self._partitions = tuple(partitions)
        self._length_ms = int(settings.windows.length_s * 1000)
        self._lateness_ms = int(settings.windows.lateness_s * 1000)
        self._layout, self._epochs = layout, tuple(epochs)

    def clock(self, times: Int64, max_time_before: int) -> Int64:
        """Each event's own time (N,) or, where the partition's watermark has passed that, the watermark."""
        newest_before = np.maximum.accumulate(np.concatenate([[max_time_before], times]))[:-1]
        passed = np.where(newest_before == NEVER, NEVER, newest_before - self._lateness_ms)
        clock: Int64 = np.maximum(times, passed)
        return clock

    def windows(self, clock: Int64, offsets: Int64, floors: Sequence[tuple[int, int]]) -> Int64:
        """Start of the window each event counts into (N,)."""
        starts = window_of(clock, self._length_ms)
        for after, end in floors:
            starts = np.where(offsets > after, np.maximum(starts, end), starts)
        return starts

    def records(self, taken: Sequence[tuple[Cursor, Decoded]]) -> list[ActorBatch]:
        """Batches, one per actor, of what was read of some partitions, each from where its cursor stands."""
        steps, columns = zip(*(self._step(cursor, decoded) for cursor, decoded in taken), strict=True)
        return self._split(steps, EventColumns.joined(columns))

    def _step(self, cursor: Cursor, decoded: Decoded) -> tuple[Progress, EventColumns]:
        events = decoded.events
        clock = self.clock(events.time_ms, cursor.max_time_ms)
        columns = EventColumns(
            user=events.user,
            item=events.item,
            event_id=events.event_id,
            time_ms=events.time_ms,
            type=events.type,
            value_micro=events.value_micro,
            category=events.category,
            partition=np.full(len(events), cursor.code, np.int32),
            offset=decoded.offset,
            ingested_ms=decoded.ingested_ms,
            window=self.windows(clock, decoded.offset, cursor.floors),
            clock_ms=clock,
        )
        windows, reverse = np.unique(columns.window[::-1], return_index=True)
        step = replace(
            _tick(cursor),
            upto_offset=decoded.upto_offset,
            max_time_ms=int(events.time_ms.max(initial=cursor.max_time_ms)),
            idle=False,
            windows=windows,
            window_offsets=decoded.offset[::-1][reverse],  # the last offset that counts into each
            dead_letters=decoded.dead_letters,
        )
        return step, columns

    def ticks(self, cursors: Iterable[Cursor]) -> list[ActorBatch]:
        """Batches that carry no records, only the state of partitions."""
        return self._split([_tick(cursor) for cursor in cursors], EventColumns.none())

    def _split(self, steps: Sequence[Progress], columns: EventColumns) -> list[ActorBatch]:
        shard = (columns.user % np.uint64(self._num_shards)).astype(np.int64)
        order = np.argsort(shard, kind="stable")
        counts = np.bincount(shard, minlength=self._num_shards)
        ends = np.cumsum(counts)
        batches = []
        for route, epoch in zip(self._layout.routes, self._epochs, strict=True):
            picked = [order[ends[s] - counts[s] : ends[s]] for s in route.shards]
            bounds = np.cumsum([0, *(len(part) for part in picked)])
            events = columns.take(np.concatenate(picked)) if len(order) else columns
            whole = ShardBatch(tuple(steps), self._partitions, events)
            batches.append(ActorBatch(whole, route.shards, bounds, epoch))
        return batches


def _tick(cursor: Cursor) -> Progress:
    """A step without records."""
    none = np.empty(0, np.int64)
    return Progress(
        partition=cursor.code,
        from_offset=cursor.next_offset,
        upto_offset=cursor.next_offset - 1,
        max_time_ms=cursor.max_time_ms,
        idle=cursor.idle,
        windows=none,
        window_offsets=none,
        dead_letters=none,
        after_loss=cursor.after_loss,
        generation=cursor.generation,
    )
