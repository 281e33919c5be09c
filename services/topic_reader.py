"""Looks into a topic, for the commands that only read: from here to there, and no further.

Joins no group and commits nothing. Beginnings and ends are those of the moment it was opened, so that a topic that
keeps growing (or grows by what the reader's own work puts there) is still read to an end.
"""

import difflib
import time
from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any

from kafka import TopicPartition

from streaming.config import KafkaSettings
from streaming.errors import BrokerError
from streaming.kafka import make_consumer, translated

_POLL_MS = 500
_POLL_RECORDS = 500  # at most so many records are in memory at once, whatever the topic's length


class UnknownTopicError(BrokerError):
    """The broker has no such topic; the message names the nearest."""

    def __init__(self, topic: str, existing: list[str]) -> None:
        shown = [name for name in existing if not name.startswith("__")]
        close = difflib.get_close_matches(topic, shown, n=3, cutoff=0.5)
        close += [name for name in shown if topic.lower() in name.lower() and name not in close]
        if close:
            hint = f"did you mean {' or '.join(close[:3])}?"
        elif shown:
            hint = (
                f"it has {', '.join(shown[:10])}{f' and {len(shown) - 10} more' if len(shown) > 10 else ''}"
            )
        else:
            hint = "it has none yet"
        super().__init__(f"the broker has no topic {topic!r}; {hint}")


class TopicReader:
    """One topic as it stands; a context manager.

    Args:
        settings: how to reach the broker; its `request_timeout_s` bounds every wait.
        topic: an existing topic.

    Raises:
        UnknownTopicError: there is no such topic.
        BrokerError: the broker cannot be reached.
    """

    def __init__(self, settings: KafkaSettings, topic: str) -> None:
        self.topic = topic
        self._settings = settings
        self._consumer = make_consumer(settings, _POLL_RECORDS)
        try:
            with translated(settings, f"look at topic {topic!r}"):
                names = sorted(self._consumer.topics())
                if topic not in names:
                    raise UnknownTopicError(topic, names)
                self.partitions: list[int] = sorted(self._consumer.partitions_for_topic(topic) or ())
                parts = [TopicPartition(topic, partition) for partition in self.partitions]
                first = self._consumer.beginning_offsets(parts)
                end = self._ends(first)
                self.beginnings = {part.partition: offset for part, offset in first.items()}
                self.ends = {part.partition: offset for part, offset in end.items()}
        except BaseException:
            self.close()
            raise

    def everything(self) -> dict[int, tuple[int, int]]:
        """The range of every partition, as `read` takes it."""
        return {
            partition: (self.beginnings[partition], self.ends[partition]) for partition in self.partitions
        }

    def newest(self, count: int) -> dict[int, tuple[int, int]]:
        """Ranges that hold the newest `count` records, spread evenly over the partitions that have enough."""
        held = sorted(
            self.partitions, key=lambda partition: self.ends[partition] - self.beginnings[partition]
        )
        ranges: dict[int, tuple[int, int]] = {}
        for position, partition in enumerate(held):  # the shortest first: what it lacks the others give
            share = -(-count // (len(held) - position))
            taken = min(share, self.ends[partition] - self.beginnings[partition])
            ranges[partition] = self.ends[partition] - taken, self.ends[partition]
            count -= taken
        return ranges

    def read(self, ranges: Mapping[int, tuple[int, int]]) -> Iterator[Any]:
        """Yield the records (kafka-python's) of partition → (first offset, end offset), each in offset order.

        Raises:
            BrokerError: nothing came for `request_timeout_s`, or the broker refused.
        """
        ends = {
            TopicPartition(self.topic, partition): end
            for partition, (first, end) in ranges.items()
            if first < end
        }
        if not ends:
            return
        consumer = self._consumer
        with translated(self._settings, f"read topic {self.topic!r}"):
            consumer.assign(list(ends))
            consumer.resume(*ends)  # an earlier reading paused them
            for part in ends:
                consumer.seek(part, ranges[part.partition][0])
        heard_at = time.monotonic()
        while ends:
            with translated(self._settings, f"read topic {self.topic!r}"):
                polled = consumer.poll(timeout_ms=_POLL_MS)
                position = {part: consumer.position(part) for part in ends}
            for part, records in polled.items():
                for record in records:
                    if record.offset < ends.get(part, 0):
                        yield record
            for part, at in position.items():
                if at >= ends[part]:  # holds too where the last records are markers of transactions
                    del ends[part]
                    consumer.pause(part)
            if polled:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > self._settings.request_timeout_s:
                raise BrokerError(
                    f"topic {self.topic!r}: nothing came from partitions {sorted(p.partition for p in ends)} within "
                    f"{self._settings.request_timeout_s:g} s, though they go on to {sorted(ends.values())}"
                )

    def _ends(self, first: Mapping[TopicPartition, int]) -> dict[TopicPartition, int]:
        """The offset after the newest record, per partition.

        Where a broker names an end, the last batch is read as well: the embedded one gives the offset after that
        batch's first record.
        """
        consumer = self._consumer
        ends: dict[TopicPartition, int] = consumer.end_offsets(list(first))
        waiting = {part for part in ends if ends[part] > first[part]}
        if not waiting:
            return ends
        consumer.assign(list(waiting))
        for part in waiting:
            consumer.seek(part, ends[part] - 1)
        goals: dict[TopicPartition, int] = {}
        while waiting and (polled := consumer.poll(timeout_ms=_POLL_MS)):
            for part in polled:
                ends[part] = consumer.position(part)
                goals.setdefault(part, consumer.highwater(part) or 0)  # what comes later is not waited for
                if ends[part] >= goals[part]:
                    waiting.discard(part)
                    consumer.pause(part)
        return ends

    def close(self) -> None:
        """Leave the broker."""
        self._consumer.close(autocommit=False)

    def __enter__(self) -> "TopicReader":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
