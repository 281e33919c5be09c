"""Records of assigned partitions, as columns: one interface over the Kafka clients that can deliver them.

Positions are the caller's business (they live beside the state they produced): a source starts where it is
told to, commits only for people's lag tools, and raises instead of moving a position by itself.
"""

import contextlib
import gc
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any, Protocol

import numpy as np
from kafka import TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from streaming.config import KafkaSettings
from streaming.errors import BrokerError
from streaming.kafka import make_consumer, partitions_of_topics, translated
from streaming.rows import Int64

log = logging.getLogger(__name__)

Part = tuple[str, int]
"""A topic and a partition number."""

Header = tuple[str, bytes]

LOOKUP_TIMEOUT_S = 10.0
"""Longest wait for the broker to name the offsets of a partition; a topic that does not exist takes this long."""

QUIET_CHECK_S = 5.0
"""A partition that brings nothing for this long is looked up: its topic may be gone, or have been made anew."""


def _no_headers(_: int) -> list[Header]:
    return []


@dataclass(frozen=True, slots=True, eq=False)
class Records:
    """Consecutive records of one partition, in offset order (offsets may have holes).

    Args:
        offsets: (N,) int64, ascending.
        timestamps_ms: (N,) int64, as the producer or the broker stamped them; -1 where they did not.
        keys: N keys, none where there is none.
        values: N values, none for a tombstone.
        headers_of: the headers of record i; a call, since hardly anybody asks.
    """

    topic: str
    partition: int
    offsets: Int64
    timestamps_ms: Int64
    keys: list[bytes | None]
    values: list[bytes | None]
    headers_of: Callable[[int], list[Header]] = field(default=_no_headers, repr=False)

    def __len__(self) -> int:
        return len(self.values)

    def headers(self, record: int) -> list[Header]:
        """The headers of a record, in order; names may repeat, a null value is empty (producers refuse null)."""
        return self.headers_of(record)


class RecordSource(Protocol):
    """What reads partitions. Not thread-safe; whatever goes wrong raises BrokerError."""

    def assign(self, start: Mapping[Part, int]) -> None:
        """Read these partitions, each from its offset; what was read before is forgotten.

        Raises:
            BrokerError: a topic does not exist, or its records at that offset are gone.
        """

    def poll(self, timeout_s: float) -> list[Records]:
        """Wait for records; one entry per partition that had any, `max_records` over all of them at most.

        Raises:
            BrokerError: also, after some seconds, if a topic has vanished or was made anew, the broker does not
                answer any more, or a partition ends before the offset that is to be read.
        """

    def beginnings(self, parts: Sequence[Part]) -> dict[Part, int]:
        """Oldest offset the broker still holds, per partition."""

    def ends(self, parts: Sequence[Part]) -> dict[Part, int]:
        """Offset after the newest committed record, per partition; exact for those that are being read.

        For others it may be less on the embedded broker, whose ListOffsets counts its newest batch as one record.
        """

    def commit(self, next_offsets: Mapping[Part, int]) -> None:
        """Tell the broker how far the group is, without waiting; a failure is logged, as nothing depends on it."""

    def close(self) -> None:
        """Leave the broker; may be called twice."""


def make_source(settings: KafkaSettings, max_records: int) -> RecordSource:
    """Make the source that `kafka.client` names.

    Args:
        max_records: most records one `poll` returns.

    Raises:
        BrokerError: the broker cannot be reached, or the client is not installed.
    """
    if settings.client == "confluent":
        try:
            from streaming.brokers.source_confluent import ConfluentSource
        except ImportError as error:
            raise BrokerError(
                "kafka.client=confluent needs the package confluent-kafka: run `pip install 'headrace[fast]'`, "
                f"or set kafka.client=kafka-python ({error})"
            ) from error
        return ConfluentSource(settings, max_records)
    return KafkaPythonSource(settings, max_records)


@contextlib.contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector from walking a batch while it is made: records hold no cycles.

    A quarter of kafka-python's time went there, and more in a process with many objects.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Watch:
    """Notices quiet partitions whose topic is gone or was made anew: a fetch may just bring nothing from those.

    (Kafka answers such a fetch with an error, which the clients hide or raise; the embedded broker with nothing.)
    """

    def __init__(self) -> None:
        self._positions: dict[Part, int] = {}
        self._heard_at: dict[Part, float] = {}
        self._next_check = math.inf

    def start(self, positions: Mapping[Part, int], beginnings: Mapping[Part, int]) -> None:
        """Begin at these positions; one before the oldest record is refused at once."""
        for (topic, partition), offset in positions.items():
            if offset < beginnings[topic, partition]:
                raise BrokerError(
                    f"topic {topic!r}, partition {partition}: asked to read from offset {offset}, but the oldest "
                    f"record is {beginnings[topic, partition]}; retention has passed what was asked for"
                )
        now = time.monotonic()
        self._positions = dict(positions)
        self._heard_at = dict.fromkeys(positions, now)
        self._next_check = now + QUIET_CHECK_S

    def heard(self, batches: Sequence[Records], ends: Callable[[Sequence[Part]], Mapping[Part, int]]) -> None:
        """Note what a poll brought, and look up who has been quiet."""
        now = time.monotonic()
        for batch in batches:
            part = batch.topic, batch.partition
            self._positions[part] = int(batch.offsets[-1]) + 1
            self._heard_at[part] = now
        if now < self._next_check:
            return
        self._next_check = now + QUIET_CHECK_S
        quiet = [part for part, at in self._heard_at.items() if now - at >= QUIET_CHECK_S]
        for (topic, partition), end in (ends(quiet) if quiet else {}).items():
            if end < self._positions[topic, partition]:
                raise BrokerError(
                    f"topic {topic!r}, partition {partition}: ends at offset {end}, before "
                    f"{self._positions[topic, partition]}, where reading stands; was it deleted and made anew?"
                )


_CLOSE_MS = 2000  # a broker that is gone must not hold up a restart
_OFFSET, _TIMESTAMP, _KEY, _VALUE = (
    itemgetter(3),
    itemgetter(4),
    itemgetter(6),
    itemgetter(7),
)  # of a ConsumerRecord


class KafkaPythonSource:
    """RecordSource over kafka-python, which is always installed."""

    def __init__(self, settings: KafkaSettings, max_records: int) -> None:
        self._settings, self._max_records = settings, max_records
        self._lookup_ms = int(min(LOOKUP_TIMEOUT_S, settings.request_timeout_s) * 1000)
        self._watch = Watch()
        self._partitions: dict[str, list[int]] = {}
        self._consumer = make_consumer(settings, max_records)

    def assign(self, start: Mapping[Part, int]) -> None:
        """See RecordSource."""
        parts = list(start)
        self._watch.start(start, self.beginnings(parts))
        with translated(self._settings, "assign partitions"):
            self._consumer.assign([TopicPartition(*part) for part in parts])
            for part, offset in start.items():
                self._consumer.seek(TopicPartition(*part), offset)

    def poll(self, timeout_s: float) -> list[Records]:
        """See RecordSource."""
        with translated(self._settings, "read records"), no_collection():
            polled = self._consumer.poll(int(timeout_s * 1000))
            batches = [_columns(part, records) for part, records in polled.items()]
        self._watch.heard(batches, self.ends)
        return batches

    def beginnings(self, parts: Sequence[Part]) -> dict[Part, int]:
        """See RecordSource."""
        return self._offsets("beginning", self._consumer.beginning_offsets, parts)

    def ends(self, parts: Sequence[Part]) -> dict[Part, int]:
        """See RecordSource."""
        listed = self._offsets("end", self._consumer.end_offsets, parts)
        assigned = self._consumer.assignment()
        fetched = {
            part: self._consumer.highwater(TopicPartition(*part))
            for part in parts
            if TopicPartition(*part) in assigned
        }
        return {part: max(end, fetched.get(part) or 0) for part, end in listed.items()}

    def commit(self, next_offsets: Mapping[Part, int]) -> None:
        """See RecordSource."""
        offsets = {
            TopicPartition(*part): OffsetAndMetadata(offset, "", -1) for part, offset in next_offsets.items()
        }
        self._consumer.commit_async(offsets, callback=_log_failure)

    def close(self) -> None:
        """See RecordSource."""
        self._consumer.close(autocommit=False, timeout_ms=_CLOSE_MS)

    def _offsets(self, which: str, ask: Callable[..., Any], parts: Sequence[Part]) -> dict[Part, int]:
        """Ask topic by topic: kafka-python forgets the partitions it does not know yet among others that it does."""
        self._require(parts)
        found: dict[Part, int] = {}
        for topic in sorted({topic for topic, _ in parts}):
            asked = [TopicPartition(*part) for part in parts if part[0] == topic]
            with translated(self._settings, f"find the {which} of topic {topic!r}"):
                answer = ask(asked, timeout_ms=self._lookup_ms)
            found |= {(part.topic, part.partition): offset for part, offset in answer.items()}
        return found

    def _require(self, parts: Sequence[Part]) -> None:
        """Look up topics that are new here; kafka-python would wait for one that does not exist."""
        new = {topic for topic, _ in parts} - self._partitions.keys()
        if new:
            self._partitions |= partitions_of_topics(self._settings, sorted(new))
        for topic, partition in parts:
            known = self._partitions[topic]
            if partition not in known:
                del self._partitions[topic]  # it may come yet
                raise BrokerError(
                    f"partition {partition} of topic {topic!r} does not exist; the topic has the partitions {known}"
                )


def _columns(part: TopicPartition, records: Sequence[Any]) -> Records:
    count = len(records)
    return Records(
        part.topic,
        part.partition,
        np.fromiter(map(_OFFSET, records), np.int64, count),
        np.fromiter(map(_TIMESTAMP, records), np.int64, count),
        list(map(_KEY, records)),
        list(map(_VALUE, records)),
        lambda record: [(name, value or b"") for name, value in records[record].headers],
    )


def _log_failure(_: Any, response: Any) -> None:
    if isinstance(response, KafkaError):
        log.warning("the group's offsets were not committed (lag tools will be behind): %r", response)


def part_names(parts: Sequence[Part]) -> str:
    """Partitions as people write them: `events[0], events[1]`."""
    return ", ".join(f"{topic}[{partition}]" for topic, partition in parts)
