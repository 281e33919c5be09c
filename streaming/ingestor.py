"""The ingestor actor: reads assigned partitions, and hands every micro-batch to every shard.

The order of things for one batch: (1) dead letters are produced and acknowledged; (2) the batch, which may be of
several partitions, goes to all shard actors, each of which commits it; (3) the offsets are committed to Kafka for
people's lag tools.
Whatever fails, the ingestor enters the shards again, which tells how far they are, rewinds to the lowest
answer and goes on: sending again is harmless, since a shard drops what it has, and a gap is impossible, since a
shard refuses it. A shard takes batches only from the ingestor that entered last, so one that
was thought dead can do no harm.

Everything is bounded: records fetched ahead (by the client's settings), records waiting to be sent
(`batch_records`), micro-batches in flight (`pipeline_depth`), and dead letters, which are awaited.
"""

import logging
import math
import os
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from kafka import KafkaProducer

from streaming import metrics
from streaming.batch import ActorBatch, Position, partition_code
from streaming.batcher import Batcher, Cursor, Layout
from streaming.config import KafkaSettings, StreamingSettings
from streaming.dead_letters import send_dead_letters
from streaming.errors import BrokerError
from streaming.event_traces import EventTraces
from streaming.events import EventDecoder
from streaming.intake import Decoded, Intake
from streaming.kafka import TopicInfo, make_producer, topics_of
from streaming.rows import NEVER
from streaming.shard import Entered
from streaming.source import Part, Records, RecordSource, make_source
from streaming.traces import Span, make_tracer

log = logging.getLogger(__name__)

_COMMIT_EVERY_S = 2.0
_POLL_RECORDS = 20_000
_BACKLOG_WAIT_S = 0.05
_DECODED_MEANWHILE = (
    4_000  # records decoded while shards are at work, so that less is left to do when they answer
)
_ANSWER_WAIT_S = 0.005  # between two looks whether the shards have answered
_BACKLOG_RECORDS = 50_000
_LOOK_AT_TOPICS_EVERY_S = 5.0
_RETRY_S = 0.3


@dataclass(frozen=True)
class IngestorStats:
    """What this ingestor did since it started (exact totals live in the shards)."""

    records: int
    batches: int
    rewinds: int
    lag: int
    lost: int  # records that retention deleted before they were read
    error: str | None


class Ingestor:
    """Pumps partitions into shards from a thread of its own; meant to be a Ray actor with restarts.

    Args:
        kafka: broker settings.
        settings: streaming settings.
        parts: topics and partitions this ingestor reads.
        all_parts: all that windows wait for, in every ingestor.
        layout: who hosts which logical shards.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: StreamingSettings,
        parts: Sequence[Part],
        all_parts: Sequence[Part],
        layout: Layout,
    ) -> None:
        self._kafka, self._settings, self._layout = kafka, settings, layout
        topics = [source.topic for source in settings.sources]
        self._codes = {
            (topic, number): partition_code(topics.index(topic), number) for topic, number in parts
        }
        self._all_codes = [partition_code(topics.index(topic), number) for topic, number in all_parts]
        self._decoders = {source.topic: EventDecoder(settings, source) for source in settings.sources}
        self._batcher = Batcher(settings, self._all_codes, layout, [0] * len(layout.routes))
        self._topics: dict[str, TopicInfo] = {}
        self._cursors: dict[Part, Cursor] = {}
        self._intake = Intake(self._decode, settings.batch_records)
        # next offsets, answers to come, and of records (no mere ticks) when they were sent, and their span
        self._pending: deque[tuple[dict[Part, int], list[Any], float | None, Span | None]] = deque()
        tracer = make_tracer(settings.traces, "ingestor")
        self._traces = EventTraces(tracer, settings.logical_shards) if tracer else None
        self._lag = {part: metrics.INGEST_LAG.labels(part[0], str(part[1])) for part in parts}
        self._records = self._batches = self._rewinds = self._lost = 0
        self._error: str | None = None
        self._dead_letters: KafkaProducer | None = None  # made at the first dead letter
        self._asked_at = self._flushed_at = -math.inf
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingestor", daemon=True)
        self._thread.start()

    def stats(self) -> IngestorStats:
        """Progress of this process."""
        cursors = list(self._cursors.values())
        lag = sum(max(0, cursor.end - cursor.next_offset) for cursor in cursors if cursor.end is not None)
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
            source: RecordSource | None = None
            try:
                entered = self._enter()
                source = make_source(self._kafka, min(self._settings.batch_records, _POLL_RECORDS))
                self._seek(source, entered)
                self._error = None
                self._pump(source)
            except Exception as error:  # rewinding is right whatever failed
                self._rewinds += 1
                metrics.INGEST_REWINDS.inc()
                self._error = f"{type(error).__name__}: {error}"
                log.warning("ingestor rewinds after %s", self._error)
                self._stop.wait(_RETRY_S)
            finally:
                self._pending.clear()
                self._intake.clear()
                if self._traces is not None:
                    self._traces.clear()
                if source is not None:
                    source.close()
        if self._dead_letters is not None:
            self._dead_letters.close(timeout=5)

    def _enter(self) -> list[Entered]:
        """Become the only one whose batches of these partitions the shards take."""
        codes, version = list(self._codes.values()), self._layout.version
        answers: list[Entered] = ray.get(
            [route.actor.enter.remote(route.shards, version, codes) for route in self._layout.routes],
            timeout=self._settings.apply_timeout_s,
        )
        epochs = [answer.epoch for answer in answers]
        self._batcher = Batcher(self._settings, self._all_codes, self._layout, epochs)
        return answers

    def _seek(self, source: RecordSource, entered: Sequence[Entered]) -> None:
        """Go to the lowest offset that some shard still lacks, with the watermark as it stood there."""
        parts = list(self._codes)
        self._topics = topics_of(self._kafka, sorted({topic for topic, _ in parts}))
        for topic, number in parts:
            if number not in self._topics[topic].partitions:
                raise BrokerError(
                    f"topic {topic!r} has no partition {number} any more; make it again, the stream waits"
                )
        beginnings = source.beginnings(parts)
        shards = [positions for answer in entered for positions in answer.positions.values()]
        for part, code in self._codes.items():
            generation = self._topics[part[0]].generation
            cursor = self._cursors[part] = Cursor(code, beginnings[part], generation)
            known = [positions[code] for positions in shards if code in positions]
            if any(position.is_of_another(generation) for position in known):
                log.error("topic %s was made anew; partition %d is read from its beginning", *part)
            elif len(known) == len(shards):
                self._resume(part, cursor, known)
        self._hold()
        source.assign({part: self._cursors[part].next_offset for part in parts})

    def _resume(self, part: Part, cursor: Cursor, known: Sequence[Position]) -> None:
        lowest = min(known, key=lambda position: position.applied)
        beginning = cursor.next_offset
        cursor.next_offset, cursor.max_time_ms = lowest.applied + 1, lowest.max_time_ms
        if cursor.next_offset < beginning:
            self._lost += beginning - cursor.next_offset
            metrics.INGEST_LOST.inc(beginning - cursor.next_offset)
            log.error(
                "topic %s, partition %d: retention deleted records %d to %d before they were read",
                *part,
                cursor.next_offset,
                beginning - 1,
            )
            cursor.next_offset, cursor.after_loss = beginning, True

    def _hold(self) -> None:
        """Tell all shards that no partition is idle, and learn what was closed while one was.

        From then on no shard closes a window until the newest time of each of these has passed it; so the floors do
        not change any more, and every shard's records count into the same windows.
        """
        now = time.monotonic()
        for cursor in self._cursors.values():
            cursor.idle, cursor.last_record_at = False, now
        self._send(list(self._cursors), self._batcher.ticks(self._cursors.values()))
        while self._pending:
            self._await_oldest()
        answers = ray.get(
            [route.actor.positions.remote() for route in self._layout.routes],
            timeout=self._settings.apply_timeout_s,
        )
        for cursor in self._cursors.values():
            known = [positions[cursor.code] for answer in answers for positions in answer.values()]
            cursor.floors = tuple({(p.floor_from, p.floor_ms) for p in known if p.floor_ms != NEVER})

    def _pump(self, source: RecordSource) -> None:
        committed_at = looked_at = time.monotonic()
        done: dict[Part, int] = {}
        while not self._stop.is_set():
            polled = source.poll(self._patience_s())
            if any(self._cursors[batch.topic, batch.partition].idle for batch in polled):
                self._hold()  # a burst after silence: the other partitions' part of it is about to be read
            self._intake.add(polled)
            self._reap(done)
            if self._pending and not self._behind():
                self._intake.decode(_DECODED_MEANWHILE)
            if self._intake.full() or (len(self._intake) and self._is_time(bool(polled))):
                self._make_room(done)
                self._flush()
            self._tick(source)
            now = time.monotonic()
            if done and now - committed_at > _COMMIT_EVERY_S:
                source.commit(done)
                done, committed_at = {}, now
            if now - looked_at > _LOOK_AT_TOPICS_EVERY_S:
                looked_at = now
                self._look_at_topics()

    def _flush(self) -> None:
        """Send what there is."""
        taken = self._intake.take()
        batches = self._batcher.records([(self._cursors[part], decoded) for part, decoded in taken.items()])
        now = self._flushed_at = time.monotonic()
        for part, decoded in taken.items():
            cursor = self._cursors[part]
            cursor.next_offset = decoded.upto_offset + 1
            cursor.max_time_ms = int(decoded.events.time_ms.max(initial=cursor.max_time_ms))
            cursor.last_record_at = now
            cursor.after_loss = False
            self._records += decoded.records
            metrics.INGEST_RECORDS.labels(part[0]).inc(decoded.records)
        records = sum(decoded.records for decoded in taken.values())
        metrics.BATCH_RECORDS.observe(records)
        span = None
        if self._traces is not None:
            batches, span = self._traces.send(batches, records)
        self._send(list(taken), batches, now, span)

    def _is_time(self, more_came: bool) -> bool:
        """Whether what was read is to be sent though the micro-batch is not complete.

        While shards are at work it waits for them: the busier they are, the larger and cheaper the next batch.
        """
        lingered = time.monotonic() - self._flushed_at >= self._settings.linger_s
        return lingered and not self._pending and not (more_came and self._behind())

    def _patience_s(self) -> float:
        """How long a poll may wait: no longer than until something else can be done."""
        if self._behind():
            return _BACKLOG_WAIT_S  # there is more, it is only on its way
        if len(self._intake):
            lingers = self._flushed_at + self._settings.linger_s - time.monotonic()
            return max(_ANSWER_WAIT_S if self._pending else 0.0, lingers)
        return _ANSWER_WAIT_S if self._pending else self._settings.tick_s

    def _behind(self) -> bool:
        """Whether so much is left to read that it pays to wait for larger micro-batches."""
        left = sum(
            cursor.end - cursor.next_offset - self._intake.waits(part)
            for part, cursor in self._cursors.items()
            if cursor.end is not None
        )
        return left >= min(self._settings.batch_records, _BACKLOG_RECORDS)

    def _make_room(self, done: dict[Part, int]) -> None:
        """Wait until fewer than `pipeline_depth` micro-batches are under way."""
        while len(self._pending) >= self._settings.pipeline_depth:
            done |= self._await_oldest()

    def _reap(self, done: dict[Part, int]) -> None:
        """Take the answers that are there, without waiting."""
        while self._pending:
            answers = self._pending[0][1]
            if len(ray.wait(answers, num_returns=len(answers), timeout=0)[0]) < len(answers):
                return
            done |= self._await_oldest()

    def _look_at_topics(self) -> None:
        """A fetch from a topic that was deleted just brings nothing; so the broker is asked now and then."""
        now = topics_of(self._kafka, sorted(self._topics))
        for topic, info in self._topics.items():
            if now[topic].generation != info.generation:
                raise BrokerError(
                    f"topic {topic!r} was deleted" + (" and made anew" if now[topic].partitions else "")
                )

    def _decode(self, batch: Records) -> Decoded:
        """Make events of records, and dead letters of those that are none."""
        with metrics.DECODE_SECONDS.time():
            events, rejected = self._decoders[batch.topic].decode(
                batch.values, batch.keys, batch.timestamps_ms
            )
        if self._traces is not None:
            self._traces.look(batch, events)
        if rejected:
            self._dead_letters = self._dead_letters or make_producer(self._kafka)
            send_dead_letters(self._dead_letters, self._kafka, batch, rejected)
        return Decoded.of(batch, events, [reject.record for reject in rejected])

    def _tick(self, source: RecordSource) -> None:
        """Tell the shards of quiet partitions, so that those do not hold windows open for ever.

        A partition is idle only where the broker says that nothing is left in it (one with a long backlog may
        have to wait for its turn longer than the time-out), and all shards have what was sent of it: so whatever
        closes from then on is beyond all records sent so far.
        """
        now = time.monotonic()
        tick_s, silent_s = self._settings.tick_s, self._settings.windows.idle_timeout_s
        if now - self._asked_at >= tick_s:
            self._asked_at = now
            ends = source.ends(list(self._cursors))
            for part, end in ends.items():
                self._cursors[part].end = end
                self._lag[part].set(max(0, end - self._cursors[part].next_offset))
        due = {part: cursor for part, cursor in self._cursors.items() if now - cursor.last_sent_at >= tick_s}
        if not due:
            return
        under_way = {part for offsets, *_ in self._pending for part in offsets}
        for part, cursor in due.items():
            silent = now - cursor.last_record_at > silent_s and part not in under_way
            waits = self._intake.waits(part)
            drained = not waits and cursor.end is not None and cursor.next_offset >= cursor.end
            cursor.idle = silent and drained
        self._send(list(due), self._batcher.ticks(due.values()))

    def _send(
        self,
        parts: Sequence[Part],
        batches: Sequence[ActorBatch],
        sent_at: float | None = None,
        span: Span | None = None,
    ) -> None:
        refs = [
            route.actor.apply.remote(batch) for route, batch in zip(self._layout.routes, batches, strict=True)
        ]
        offsets = {part: self._cursors[part].next_offset for part in parts}
        self._pending.append((offsets, refs, sent_at, span))
        now = time.monotonic()
        for part in parts:
            self._cursors[part].last_sent_at = now
        self._batches += 1

    def _await_oldest(self) -> dict[Part, int]:
        """Wait for the answers to the oldest micro-batch; returns the next offsets behind it."""
        offsets, refs, sent_at, span = self._pending.popleft()
        ray.get(refs, timeout=self._settings.apply_timeout_s)
        if sent_at is not None:
            metrics.BATCH_SECONDS.observe(time.monotonic() - sent_at)
        if span is not None:
            span.end()
        return offsets
