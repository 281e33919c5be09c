"""What the broker holds at the end: the topic's own log, record by record, which the truth is computed from."""

import time
from collections.abc import Mapping
from dataclasses import dataclass

from kafka import TopicPartition

from streaming.config import KafkaSettings
from streaming.kafka import make_consumer, partitions_of

_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Logged:
    """A record as the broker kept it."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]


def read_log(kafka: KafkaSettings, topic: str) -> dict[int, list[Logged]]:
    """All records of a topic, by partition, in order of their offsets.

    Raises:
        TimeoutError: the broker did not deliver them in time.
    """
    return {
        number: _partition(kafka, TopicPartition(topic, number)) for number in partitions_of(kafka, topic)
    }


def _partition(kafka: KafkaSettings, part: TopicPartition) -> list[Logged]:
    consumer = make_consumer(kafka)
    deadline = time.monotonic() + _TIMEOUT_S
    found: list[Logged] = []
    try:
        consumer.assign([part])
        consumer.seek(part, 0)
        empty = consumer.end_offsets([part])[part] == 0
        while not empty and (not found or found[-1].offset + 1 < (consumer.highwater(part) or 0)):
            if time.monotonic() > deadline:
                raise TimeoutError(
                    f"{part}: {len(found)} records read within {_TIMEOUT_S:.0f} s, not all of them"
                )
            for record in consumer.poll(1000).get(part, []):
                headers = tuple((name, value or b"") for name, value in record.headers)
                found.append(Logged(record.offset, record.timestamp, record.key, record.value, headers))
    finally:
        consumer.close(autocommit=False, timeout_ms=2000)
    return found


def ends(log: Mapping[int, list[Logged]]) -> dict[int, int]:
    """Last offset of each partition; -1: empty."""
    return {number: records[-1].offset if records else -1 for number, records in log.items()}
