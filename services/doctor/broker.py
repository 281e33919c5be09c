"""The broker, with real clients: reach it, describe the topics, read the newest records, write one dead letter.

The record that is written is a note that nothing was replayed (`services.dead_letters`), so `headrace dlq` passes
over it; it proves that a dead letter would be acknowledged, and tells the broker's clock where the topic keeps that.
"""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import numpy as np
from kafka import KafkaAdminClient, TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from services.dead_letters import REPLAYED, Replayed
from services.doctor import clocks, topics
from services.doctor.finding import Finding, error, ok, warning
from services.doctor.topics import Topic
from services.settings import Settings
from services.topic_reader import TopicReader
from streaming.config import KafkaSettings, Source
from streaming.errors import BrokerError, StreamingError
from streaming.events import EventDecoder
from streaming.kafka import check_connection, client_options, make_consumer, make_producer, translated

_SAMPLE = 200  # newest records of a topic
_SHARE_WANTED = 0.99  # of them that validate
_UNAUTHORISED = 29  # error code of a topic that this user may not even see
_UNKNOWN = "does not exist"


def check_broker(settings: Settings) -> Iterator[Finding]:
    """Everything about Kafka; ends at the first thing without which nothing else can be tried."""
    kafka = settings.kafka
    try:
        started = time.monotonic()
        check_connection(kafka)
        yield ok("broker", f"{kafka.bootstrap_servers} lets us in after {time.monotonic() - started:.1f} s")
        with (
            translated(kafka, "describe the topics"),
            closing(KafkaAdminClient(**client_options(kafka))) as admin,
        ):
            brokers, found, hidden = _describe(admin, settings)
    except BrokerError as refused:
        yield error("broker", str(refused), "see docs/operations.md, Your own Kafka")
        return
    for name in hidden:
        yield error(f"topic {name}", "this user may not describe it", "grant Describe on it")
    yield from _judged(settings, brokers, found, set(hidden))
    for source in settings.streaming.sources:
        if source.topic in found:
            yield from _sample(settings, source)
    if kafka.items_topic in found:
        yield _read(kafka, kafka.items_topic)
    if kafka.dead_letter_topic in found:
        yield from _write(kafka, found[kafka.dead_letter_topic])
    yield from _group(kafka, found)


def _describe(admin: KafkaAdminClient, settings: Settings) -> tuple[int, dict[str, Topic], list[str]]:
    """Number of brokers, the topics that there are, and the names of those that we may not see."""
    names = [name for name, _ in _roles(settings)]
    configs = admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in names], config_filter="all"
    ).get("topic", {})
    found, hidden = {}, []
    for told in admin.describe_topics(names):
        parts = told["partitions"]
        if told["error_code"] == _UNAUTHORISED:
            hidden.append(told["name"])
        elif parts:
            found[told["name"]] = Topic(
                told["name"],
                len(parts),
                min(len(part["replica_nodes"]) for part in parts),
                min(len(part["isr_nodes"]) for part in parts),
                {name: entry["value"] for name, entry in configs.get(told["name"], {}).items()},
                told.get("authorized_operations"),
            )
    return len(admin.describe_cluster()["brokers"]), found, hidden


def _roles(settings: Settings) -> list[tuple[str, dict[str, str]]]:
    """Each topic, and the operations on it with what they are for."""
    read = {"DESCRIBE": "to know its partitions", "READ": "to read it"}
    sources = [source.topic for source in settings.streaming.sources]
    first = read | {"WRITE": "POST /v1/events and erasures"}
    letters = {
        "DESCRIBE": read["DESCRIBE"],
        "READ": "headrace dlq",
        "WRITE": "to keep what does not validate",
    }
    return [
        (sources[0], first),
        *((topic, read) for topic in sources[1:]),
        (settings.kafka.items_topic, read),
        (settings.kafka.dead_letter_topic, letters),
    ]


def _judged(settings: Settings, brokers: int, found: dict[str, Topic], hidden: set[str]) -> Iterator[Finding]:
    kafka = settings.kafka
    events = [found[source.topic] for source in settings.streaming.sources if source.topic in found]
    for name, needed in _roles(settings):
        if name in found:
            yield from topics.judge_rights(found[name], needed)
            yield from topics.judge_replication(found[name], brokers)
        elif name not in hidden:
            yield warning(
                f"topic {name}",
                _UNKNOWN,
                "`headrace up` makes it where it may; on a cluster make it beforehand",
            )
    for topic in events:
        yield from topics.judge_events(topic, settings)
    if events:
        yield topics.judge_sources(events, settings.streaming)
    if kafka.items_topic in found:
        yield from topics.judge_items(found[kafka.items_topic])
    if kafka.dead_letter_topic in found:
        yield from topics.judge_dead_letters(found[kafka.dead_letter_topic], events)


def _sample(settings: Settings, source: Source) -> Iterator[Finding]:
    """The newest records of a topic: whether they can be read, whether they validate, and their times."""
    what = f"events in {source.topic}"
    try:
        with TopicReader(settings.kafka, source.topic) as reader:
            records = list(reader.read(reader.newest(_SAMPLE)))
        if not records:
            yield ok(what, "none yet")
            return
        stamps = np.array([record.timestamp for record in records], np.int64)
        events, rejected = EventDecoder(settings.streaming, source).decode(
            [record.value for record in records], [record.key for record in records], stamps
        )
    except StreamingError as refused:
        yield error(what, str(refused), "grant Read on it; with Avro look at the schema registry")
        return
    seen = f"{len(records) - len(rejected)} of the newest {len(records)} validate"
    advice = f"`headrace inspect --topic {source.topic}` proposes a mapping"
    if len(rejected) == len(records):
        yield error(what, f"{seen}: {rejected[0].reason[:200]}", advice)
    elif len(rejected) > (1 - _SHARE_WANTED) * len(records):
        yield warning(what, f"{seen}: {rejected[0].reason[:200]}", advice)
    else:
        yield ok(what, seen)
    times = events.time_ms.tolist()
    yield from clocks.judge_events(source.topic, times, stamps.tolist(), int(time.time() * 1000))


def _read(kafka: KafkaSettings, topic: str) -> Finding:
    """Whether a topic's newest record can be read."""
    what = f"records in {topic}"
    try:
        with TopicReader(kafka, topic) as reader:
            held = sum(end - first for first, end in reader.everything().values())
            list(reader.read(reader.newest(1)))
    except StreamingError as refused:
        return error(what, str(refused), "grant Read on it")
    if not held:
        return warning(what, "none: nothing can be recommended", "produce your items to it")
    return ok(what, f"offsets span {held:,}")


def _write(kafka: KafkaSettings, topic: Topic) -> Iterator[Finding]:
    """Whether a dead letter would be acknowledged by as many brokers as it takes."""
    what = f"writing to {topic.name}"
    try:
        with translated(kafka, f"write to {topic.name!r}"):
            producer = make_producer(kafka, linger_ms=0)
            try:
                before_ms = int(time.time() * 1000)
                sent = producer.send(
                    topic.name,
                    value=Replayed().to_json(),
                    headers=[(REPLAYED, b"headrace doctor")],
                    timestamp_ms=before_ms,
                ).get(timeout=kafka.request_timeout_s)
                after_ms = int(time.time() * 1000)
            finally:
                producer.close(timeout=1)
    except BrokerError as refused:
        yield error(what, str(refused), "grant Write on it, and look whether enough brokers are in sync")
        return
    yield ok(what, f"acknowledged after {after_ms - before_ms} ms")
    stamped = sent.timestamp if topic.configs.get("message.timestamp.type") == "LogAppendTime" else None
    yield clocks.judge_broker(stamped, before_ms, after_ms)


def _group(kafka: KafkaSettings, found: dict[str, Any]) -> Iterator[Finding]:
    """Whether offsets can be looked up under our group, which only lag tools need."""
    if not found:
        return
    what, name = f"group {kafka.group_id}", next(iter(found))
    try:
        with translated(kafka, "make a consumer"):
            consumer = make_consumer(kafka)
        try:
            consumer.committed(TopicPartition(name, 0), timeout_ms=int(kafka.request_timeout_s * 1000))
        finally:
            consumer.close(autocommit=False)
    except (KafkaError, BrokerError) as refused:
        yield warning(
            what,
            type(refused).__name__,
            "grant Describe and Read on this group: lag tools see nothing without",
        )
    else:
        yield ok(what, "offsets can be looked up")
