"""Put the workload on a topic: at once, or paced from a process of its own.

    python -m tests.bench.producer BROKER TOPIC RATE SECONDS USERS RESULT     (paced)

The fast client is used where it is installed (1M records in about 3 s, against half a minute or more). Every record
goes to an explicit partition, so that how many each holds is known without asking the broker.
"""

import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.workload import Workload, make_workload

PARTITIONS = 4
LINGER_MS = 20
PREPARE_UPTO = 3_000_000  # records made before the clock starts; more are made on the way
FLUSH_TIMEOUT_S = 120.0
# Quix Streams copies the retention to its changelog topics and fails where the broker does not tell it
TOPIC_CONFIG = {"retention.ms": "604800000", "cleanup.policy": "delete"}

Send = Callable[[int, bytes, bytes], None]


def create_topic(broker: str, topic: str) -> None:
    """Create the topic; it must not exist."""
    from kafka import KafkaAdminClient
    from kafka.admin import NewTopic

    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        admin.create_topics([NewTopic(topic, PARTITIONS, 1, topic_configs=TOPIC_CONFIG)], timeout_ms=20_000)
    finally:
        admin.close()


def delete_topics(broker: str, prefixes: tuple[str, ...]) -> None:
    """Delete the topics whose names begin so: the broker holds them in memory."""
    from kafka import KafkaAdminClient

    admin = KafkaAdminClient(bootstrap_servers=broker)
    try:
        names = [name for name in admin.list_topics() if name.startswith(prefixes)]
        if names:
            admin.delete_topics(names, timeout_ms=20_000)
    finally:
        admin.close()


def produce(broker: str, topic: str, workload: Workload) -> float:
    """Send all of it and wait until the broker has it; returns the seconds that took."""
    started = time.monotonic()
    send, finish = open_producer(broker, topic)
    for partition, key, value in workload.records(PARTITIONS):
        send(partition, key, value)
    finish()
    return time.monotonic() - started


def open_producer(broker: str, topic: str, linger_ms: int = LINGER_MS) -> tuple[Send, Callable[[], None]]:
    """A function that sends one record, and one that waits until all are acknowledged."""
    try:
        from confluent_kafka import Producer
    except ImportError:
        return _kafka_python(broker, topic, linger_ms)
    producer: Any = Producer(
        {
            "bootstrap.servers": broker,
            "linger.ms": linger_ms,
            "queue.buffering.max.messages": 500_000,
            "queue.buffering.max.kbytes": 1 << 20,
        }
    )

    unserved = itertools.count(1)

    def send(partition: int, key: bytes, value: bytes) -> None:
        if next(unserved) % 1000 == 0:
            producer.poll(
                0
            )  # acknowledged records stay in the queue until they are served: a stall and a burst
        while True:
            try:
                producer.produce(topic, value, key, partition)
                return
            except BufferError:  # the queue is full: let some of it be acknowledged
                producer.poll(0.05)

    def finish() -> None:
        left = producer.flush(FLUSH_TIMEOUT_S)
        if left:
            raise TimeoutError(f"{left} records were not acknowledged by {broker} in {FLUSH_TIMEOUT_S:.0f} s")

    return send, finish


def _kafka_python(broker: str, topic: str, linger_ms: int) -> tuple[Send, Callable[[], None]]:
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=broker, linger_ms=linger_ms, batch_size=256 * 1024)

    def send(partition: int, key: bytes, value: bytes) -> None:
        producer.send(topic, value, key, partition=partition)

    return send, lambda: producer.flush(timeout=FLUSH_TIMEOUT_S)


def paced_workload(rate: float, seconds: float, num_users: int, start_ms: int) -> Workload:
    """Events that happen at that rate from that moment on: event time is clock time."""
    workload = make_workload(int(rate * seconds), num_users, seed=1)
    return replace(workload, time_ms=start_ms + (workload.event * 1000 / rate).astype(np.int64))


def pace(records: Iterable[tuple[int, bytes, bytes]], rate: float, send: Send) -> float:
    """Send at that rate; returns the rate that was reached. Late sends are caught up, not skipped."""
    started = time.monotonic()
    sent = 0
    step = max(1, int(rate / 200))  # look at the clock every 5 ms
    for record in records:
        send(*record)
        sent += 1
        if sent % step == 0:
            ahead = started + sent / rate - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)  # the pace itself, not a wait for anything
    return sent / (time.monotonic() - started)


def main() -> None:
    """Pace records onto a topic; writes how fast it went."""
    broker, topic, rate, seconds, users, linger_ms, result = sys.argv[1:]
    workload = paced_workload(float(rate), float(seconds), int(users), int(time.time() * 1000))
    records: Iterable[tuple[int, bytes, bytes]] = workload.records(PARTITIONS)
    if len(workload) <= PREPARE_UPTO:
        records = list(records)
    send, finish = open_producer(broker, topic, int(linger_ms))
    reached = pace(records, float(rate), send)
    finish()
    Path(result).write_text(json.dumps({"records": len(workload), "events_per_s": round(reached, 1)}))


if __name__ == "__main__":
    main()
