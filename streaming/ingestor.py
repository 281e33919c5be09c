"""The ingestor actor: reads assigned partitions, and hands every micro-batch to every shard.

The order of things for one batch: (1) dead letters are produced and acknowledged; (2) the batch goes to
all shard actors, each of which commits it; (3) the offset is committed to Kafka for people's lag tools.
Whatever fails, the ingestor asks the shards how far they are, rewinds to the lowest answer and goes on:
sending again is harmless, since a shard drops what it has, and a gap is impossible, since a shard refuses it.

Which window an event counts into is decided here from the partition's log alone (the newest event time
before it), so that it does not depend on where batches begin and end.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.structs import OffsetAndMetadata

from streaming.config import KafkaSettings, StreamingSettings
from streaming.events import EventDecoder, Events, Rejected
from streaming.kafka import make_consumer, make_producer, topic_partitions
from streaming.rows import NEVER, EventColumns, Int64
from streaming.shard import ActorBatch
from streaming.windows import window_of

log = logging.getLogger(__name__)

_COMMIT_EVERY_S = 2.0
_RETRY_S = 0.3


@dataclass(frozen=True)
class ShardRoute:
    """A shard actor and the logical shards it hosts."""

    actor: Any  # ray actor handle of streaming.shard.Shard
    shards: tuple[int, ...]


@dataclass
class Cursor:
    """Where the ingestor stands in one partition."""

    next_offset: int
    max_time_ms: int = NEVER
    after_loss: bool = False
    last_record_at: float = field(default_factory=time.monotonic)
    last_sent_at: float = 0.0
    highwater: int | None = None


@dataclass(frozen=True)
class IngestorStats:
    """What this ingestor did since it started (exact totals live in the shards)."""

    records: int
    batches: int
    rewinds: int
    lag: int
    lost: int
    error: str | None


class Ingestor:
    """Pumps partitions into shards from a thread of its own; meant to be a Ray actor with restarts.

    Args:
        kafka: broker settings.
        settings: streaming settings.
        partitions: partitions of the events topic this ingestor reads.
        num_partitions: partitions the topic has.
        routes: all shard actors.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: StreamingSettings,
        partitions: Sequence[int],
        num_partitions: int,
        routes: Sequence[ShardRoute],
    ) -> None:
        self._kafka, self._settings, self._routes = kafka, settings, list(routes)
        self._assigned = topic_partitions(kafka.events_topic, partitions)
        self._num_partitions = num_partitions
        self._decoder = EventDecoder(settings)
        self._batcher = Batcher(settings, num_partitions, self._routes)
        self._cursors: dict[TopicPartition, Cursor] = {}
        self._pending: deque[tuple[TopicPartition, int, list[Any]]] = deque()
        self._records = self._batches = self._rewinds = self._lost = 0
        self._error: str | None = None
        self._dead_letters: KafkaProducer | None = None  # made at the first dead letter
        self._last_polled_at = -math.inf
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingestor", daemon=True)
        self._thread.start()

    def stats(self) -> IngestorStats:
        """Progress of this process."""
        lag = sum(
            max(0, cursor.highwater - cursor.next_offset)
            for cursor in list(self._cursors.values())
            if cursor.highwater is not None
        )
        return IngestorStats(self._records, self._batches, self._rewinds, lag, self._lost, self._error)

    def pid(self) -> int:
        """Process id of this actor."""
        return os.getpid()

    def stop(self) -> None:
        """Stop reading; what was sent is left to the shards."""
        self._stop.set()
        self._thread.join(10)

    def _run(self) -> None:
        while not self._stop.is_set():
            consumer: KafkaConsumer | None = None
            try:
                consumer = make_consumer(self._kafka, self._settings.batch_records)
                self._seek(consumer)
                self._error = None
                self._pump(consumer)
            except Exception as error:  # rewinding is right whatever failed
                self._rewinds += 1
                self._error = f"{type(error).__name__}: {error}"
                log.warning("ingestor rewinds after %s", self._error)
                self._stop.wait(_RETRY_S)
            finally:
                self._pending.clear()
                if consumer is not None:
                    consumer.close(autocommit=False)
        if self._dead_letters is not None:
            self._dead_letters.close(timeout=5)

    def _seek(self, consumer: KafkaConsumer) -> None:
        """Go to the lowest offset that some shard still lacks, with the watermark as it stood there."""
        answers = ray.get(
            [route.actor.positions.remote() for route in self._routes], timeout=self._settings.apply_timeout_s
        )
        shards = [positions for answer in answers for positions in answer]
        beginnings = consumer.beginning_offsets(self._assigned)
        consumer.assign(self._assigned)
        for part in self._assigned:
            known = [positions.get(part.partition) for positions in shards]
            behind = [position for position in known if position is not None]
            cursor = Cursor(beginnings[part])
            if len(behind) == len(known):
                lowest = min(behind, key=lambda position: position.applied)
                cursor = Cursor(lowest.applied + 1, lowest.max_time_ms)
                if cursor.next_offset < beginnings[part]:
                    self._lost += beginnings[part] - cursor.next_offset
                    log.error(
                        "partition %d: retention deleted records %d to %d before they were read",
                        part.partition,
                        cursor.next_offset,
                        beginnings[part] - 1,
                    )
                    cursor = Cursor(beginnings[part], lowest.max_time_ms, after_loss=True)
            consumer.seek(part, cursor.next_offset)
            self._cursors[part] = cursor

    def _pump(self, consumer: KafkaConsumer) -> None:
        committed_at = time.monotonic()
        done: dict[TopicPartition, OffsetAndMetadata] = {}
        wait_ms = int(self._settings.tick_s * 1000)
        while not self._stop.is_set():
            polled = consumer.poll(timeout_ms=0 if self._pending else wait_ms)
            if polled:
                self._wake()
            for part, records in polled.items():
                self._send_records(part, records)
            self._tick(consumer)
            while self._pending and (len(self._pending) > self._settings.pipeline_depth or not polled):
                part, upto = self._await_oldest()
                done[part] = OffsetAndMetadata(upto + 1, "", -1)
            if done and time.monotonic() - committed_at > _COMMIT_EVERY_S:
                consumer.commit_async(dict(done))
                done, committed_at = {}, time.monotonic()

    def _send_records(self, part: TopicPartition, records: Sequence[Any]) -> None:
        cursor = self._cursors[part]
        events, rejected = self._decoder.decode([record.value for record in records])
        if rejected:
            self._send_dead_letters(records, rejected)
        offsets = np.fromiter((record.offset for record in records), np.int64, len(records))
        ingested = np.fromiter((record.timestamp for record in records), np.int64, len(records))
        dead = offsets[[reject.record for reject in rejected]]
        batches = self._batcher.records(part.partition, cursor, events, offsets, ingested, dead)
        self._send(part, int(offsets[-1]), batches)
        cursor.next_offset = int(offsets[-1]) + 1
        if len(events):
            cursor.max_time_ms = max(cursor.max_time_ms, int(events.time_ms.max()))
        cursor.last_record_at = time.monotonic()
        cursor.after_loss = False
        self._records += len(records)

    def _wake(self) -> None:
        """After silence everywhere, records of one partition say nothing about the others: give all their time.

        Otherwise the first batch of a burst could close windows that the other partitions' part of the burst
        still belongs to.
        """
        now = time.monotonic()
        if now - self._last_polled_at > self._settings.windows.idle_timeout_s:
            for part, cursor in self._cursors.items():
                cursor.last_record_at = now
                self._send(
                    part, cursor.next_offset - 1, self._batcher.tick(part.partition, cursor, idle=False)
                )
        self._last_polled_at = now

    def _tick(self, consumer: KafkaConsumer) -> None:
        """Tell the shards of quiet partitions, so that those do not hold windows open for ever.

        A partition is idle only where the broker says that nothing is left in it: one with a long backlog may
        have to wait for its turn longer than the time-out, and what was fetched last tells only of what was read.
        """
        now = time.monotonic()
        for part, cursor in self._cursors.items():
            cursor.highwater = max(cursor.highwater or 0, consumer.highwater(part) or 0)
        due = [
            part
            for part, cursor in self._cursors.items()
            if now - cursor.last_sent_at >= self._settings.tick_s
        ]
        silent_s = self._settings.windows.idle_timeout_s
        silent = [part for part in due if now - self._cursors[part].last_record_at > silent_s]
        ends = consumer.end_offsets(silent) if silent else {}
        for part in due:
            cursor = self._cursors[part]
            idle = part in ends and cursor.next_offset >= ends[part]
            self._send(part, cursor.next_offset - 1, self._batcher.tick(part.partition, cursor, idle))

    def _send(self, part: TopicPartition, upto: int, batches: Sequence[ActorBatch]) -> None:
        refs = [route.actor.apply.remote(batch) for route, batch in zip(self._routes, batches, strict=True)]
        self._pending.append((part, upto, refs))
        self._cursors[part].last_sent_at = time.monotonic()
        self._batches += 1

    def _await_oldest(self) -> tuple[TopicPartition, int]:
        part, upto, refs = self._pending.popleft()
        ray.get(refs, timeout=self._settings.apply_timeout_s)
        return part, upto

    def _send_dead_letters(self, records: Sequence[Any], rejected: Sequence[Rejected]) -> None:
        producer = self._dead_letters = self._dead_letters or make_producer(self._kafka)
        now = str(int(time.time() * 1000)).encode()
        futures = []
        for reject in rejected:
            record = records[reject.record]
            headers = [
                ("headrace.reason", reject.reason.encode(errors="replace")),
                ("headrace.topic", record.topic.encode()),
                ("headrace.partition", str(record.partition).encode()),
                ("headrace.offset", str(record.offset).encode()),
                ("headrace.time", now),
            ]
            topic = self._kafka.dead_letter_topic
            futures.append(
                producer.send(topic, key=record.key, value=record.value, headers=[*record.headers, *headers])
            )
        producer.flush(timeout=self._kafka.request_timeout_s)
        for future in futures:
            future.get(timeout=self._kafka.request_timeout_s)


class Batcher:
    """Turns decoded events into one message per shard actor."""

    def __init__(
        self, settings: StreamingSettings, num_partitions: int, routes: Sequence[ShardRoute]
    ) -> None:
        self._num_shards = settings.logical_shards
        self._num_partitions = num_partitions
        self._length_ms = int(settings.windows.length_s * 1000)
        self._lateness_ms = int(settings.windows.lateness_s * 1000)
        self._routes = routes

    def windows(self, times: Int64, max_time_before: int) -> Int64:
        """Window of each event (N,): its own or, where the watermark has passed that, the watermark's."""
        newest_before = np.maximum.accumulate(np.concatenate([[max_time_before], times]))[:-1]
        floor = np.where(newest_before == NEVER, NEVER, newest_before - self._lateness_ms)
        return window_of(np.maximum(times, floor), self._length_ms)

    def records(
        self,
        partition: int,
        cursor: Cursor,
        events: Events,
        offsets: Int64,
        ingested_ms: Int64,
        dead_letters: Int64,
    ) -> list[ActorBatch]:
        """Batches, one per route, for records `offsets` of which `events` are the valid ones."""
        columns = EventColumns(
            user=events.user,
            item=events.item,
            event_id=events.event_id,
            time_ms=events.time_ms,
            type=events.type,
            offset=offsets[events.record],
            ingested_ms=ingested_ms[events.record],
            window=self.windows(events.time_ms, cursor.max_time_ms),
        )
        newest = max(cursor.max_time_ms, int(events.time_ms.max())) if len(events) else cursor.max_time_ms
        return self._split(partition, cursor, columns, int(offsets[-1]), newest, dead_letters, idle=False)

    def tick(self, partition: int, cursor: Cursor, idle: bool) -> list[ActorBatch]:
        """Batches that carry no records, only the state of the partition."""
        upto, none = cursor.next_offset - 1, np.empty(0, np.int64)
        return self._split(partition, cursor, _NO_EVENTS, upto, cursor.max_time_ms, none, idle=idle)

    def _split(
        self,
        partition: int,
        cursor: Cursor,
        columns: EventColumns,
        upto: int,
        max_time_ms: int,
        dead_letters: Int64,
        *,
        idle: bool,
    ) -> list[ActorBatch]:
        shard = (columns.user % np.uint64(self._num_shards)).astype(np.int64)
        order = np.argsort(shard, kind="stable")
        counts = np.bincount(shard, minlength=self._num_shards)
        ends = np.cumsum(counts)
        windows, reverse = np.unique(columns.window[::-1], return_index=True)
        window_offsets = columns.offset[::-1][reverse]  # the last offset that counts into each
        batches = []
        for route in self._routes:
            picked = [order[ends[s] - counts[s] : ends[s]] for s in route.shards]
            bounds = np.cumsum([0, *(len(part) for part in picked)])
            batches.append(
                ActorBatch(
                    partition=partition,
                    from_offset=cursor.next_offset,
                    upto_offset=upto,
                    max_time_ms=max_time_ms,
                    idle=idle,
                    num_partitions=self._num_partitions,
                    windows=windows,
                    window_offsets=window_offsets,
                    dead_letters=dead_letters,
                    after_loss=cursor.after_loss,
                    shards=route.shards,
                    bounds=bounds,
                    events=columns.take(np.concatenate(picked)),
                )
            )
        return batches


_NO_EVENTS = EventColumns(
    user=np.empty(0, np.uint64),
    item=np.empty(0, np.uint64),
    event_id=np.empty(0, np.uint64),
    time_ms=np.empty(0, np.int64),
    type=np.empty(0, np.uint8),
    offset=np.empty(0, np.int64),
    ingested_ms=np.empty(0, np.int64),
    window=np.empty(0, np.int64),
)
