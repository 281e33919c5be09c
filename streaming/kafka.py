"""The only place that makes Kafka clients, so that every default that matters is set here, once.

kafka-python's consumer defaults (commit by itself, start at the newest record, read uncommitted) would each
lose or double records here; all are set explicitly.
"""

import contextlib
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import (
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    SaslAuthenticationFailedError,
    TopicAlreadyExistsError,
)
from kafka.net.compat import KafkaNetClient
from xxhash import xxh3_64_intdigest

from streaming.brokers.probe import diagnosis, probe
from streaming.brokers.security import kafka_python_security, scrubbed
from streaming.config import KafkaSettings
from streaming.errors import BrokerError

LARGEST_REQUEST = 2**28  # what a broker took in must fit into a dead letter; the broker sets the real bound
FETCH_BYTES_PER_PARTITION = 1024 * 1024  # a turn of one partition must not take seconds
FETCH_BYTES = (
    16 * 1024 * 1024
)  # one fetch in the works and one being read: what a consumer may hold, twice this


def client_options(settings: KafkaSettings) -> dict[str, Any]:
    """What every client of kafka-python is given: servers, times and security."""
    return {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": settings.client_id,
        "request_timeout_ms": int(settings.request_timeout_s * 1000),
        "bootstrap_timeout_ms": int(settings.request_timeout_s * 1000),
        "reconnect_backoff_max_ms": 2000,
        **kafka_python_security(settings),
    }


@contextlib.contextmanager
def translated(settings: KafkaSettings, action: str) -> Iterator[None]:
    """Turn errors of kafka-python into a BrokerError that says what was tried, where, and what to look at."""
    try:
        yield
    except KafkaError as error:
        told = scrubbed(settings, repr(error))
        why = ""
        if isinstance(error, KafkaTimeoutError | KafkaConnectionError | SaslAuthenticationFailedError):
            why = diagnosis(settings)  # kafka-python tries again until its time-out, whatever the cause
        raise BrokerError(
            f"cannot {action} at kafka.bootstrap_servers={settings.bootstrap_servers!r} "
            f"({settings.security_protocol}): {told}{why}"
        ) from None  # the original's text could repeat a secret


def check_connection(settings: KafkaSettings) -> None:
    """Return once the broker lets us in; what is wrong with the settings is told at once, not after a time-out.

    Raises:
        BrokerError: the broker cannot be reached within `request_timeout_s`; a file of the settings cannot be used;
            the TLS handshake or the authentication failed. The message names the settings to look at.
    """
    probe(settings)
    with translated(settings, "connect"):
        KafkaAdminClient(**client_options(settings)).close()


def make_producer(settings: KafkaSettings, *, linger_ms: int = 2) -> KafkaProducer:
    """Make an idempotent producer that waits for all replicas.

    Args:
        linger_ms: how long a record may wait for company; more means larger batches and later records.
    """
    with translated(settings, "connect a producer"):
        return KafkaProducer(
            **client_options(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            batch_size=256 * 1024,
            max_request_size=LARGEST_REQUEST,
            max_block_ms=int(settings.request_timeout_s * 1000),
        )


def _client(**config: Any) -> KafkaNetClient:
    """kafka-python 3.0.12 does not hand `allow_auto_create_topics` on: asking for a topic would create it."""
    client = KafkaNetClient(**config)
    client.cluster.config["allow_auto_create_topics"] = config["allow_auto_create_topics"]
    return client


def make_consumer(
    settings: KafkaSettings, max_poll_records: int = 5000, fetch_wait_ms: int | None = None
) -> KafkaConsumer:
    """Make a consumer for assigned partitions: no group membership, no commits of its own.

    Out-of-range offsets raise instead of jumping silently (`auto_offset_reset="none"`).
    """
    with translated(settings, "connect a consumer"):
        return KafkaConsumer(
            **client_options(settings),
            group_id=settings.group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            kafka_client=_client,
            max_poll_records=max_poll_records,
            fetch_max_wait_ms=fetch_wait_ms or settings.fetch_wait_ms,
            max_partition_fetch_bytes=FETCH_BYTES_PER_PARTITION,
            fetch_max_bytes=FETCH_BYTES,
            metrics_enabled=False,  # nobody reads them, and they cost a few per cent
            metadata_max_age_ms=30_000,
        )


def ensure_topics(settings: KafkaSettings, events: Sequence[str] = ("events",)) -> None:
    """Create the topics of events, items and dead letters that do not exist; existing ones are left as they are."""
    check_connection(settings)
    with translated(settings, "create topics"):
        admin = KafkaAdminClient(**client_options(settings))
        try:
            existing = set(admin.list_topics())
            wanted = [
                *(NewTopic(topic, settings.partitions, settings.replication_factor) for topic in events),
                NewTopic(
                    settings.items_topic,
                    1,
                    settings.replication_factor,
                    topic_configs={"cleanup.policy": "compact"},
                ),
                NewTopic(settings.dead_letter_topic, 1, settings.replication_factor),
            ]
            missing = [topic for topic in wanted if topic.name not in existing]
            with contextlib.suppress(TopicAlreadyExistsError):
                if missing:
                    admin.create_topics(missing)
        finally:
            admin.close()


@dataclass(frozen=True)
class TopicInfo:
    """What a topic is at present."""

    partitions: tuple[int, ...]  # in order; none: it does not exist
    generation: (
        int  # another number where a topic of the same name was made anew; 0: the broker does not tell
    )


def topics_of(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, TopicInfo]:
    """Look topics up with one request; nothing is created by asking."""
    with translated(settings, f"look up {', '.join(map(repr, topics))}"):
        admin = KafkaAdminClient(**client_options(settings))
        try:
            described = admin.describe_topics(list(topics)) if topics else []
        finally:
            admin.close()
    found = {
        topic["name"]: TopicInfo(
            tuple(sorted(part["partition_index"] for part in topic["partitions"])),
            _generation(topic.get("topic_id")),
        )
        for topic in described
        if topic["partitions"]
    }
    return {topic: found.get(topic, TopicInfo((), 0)) for topic in topics}


def _generation(topic_id: str | None) -> int:
    """63 bits of a topic's UUID (KIP-516); brokers before 2.8 have none, or one of zeros."""
    number = uuid.UUID(topic_id).int if topic_id else 0
    return xxh3_64_intdigest(number.to_bytes(16, "big")) >> 1 if number else 0


def partitions_of_topics(settings: KafkaSettings, topics: Sequence[str]) -> dict[str, list[int]]:
    """List the partition numbers of topics, in order; empty where one does not exist."""
    return {topic: list(info.partitions) for topic, info in topics_of(settings, topics).items()}


def partitions_of(settings: KafkaSettings, topic: str) -> list[int]:
    """List the partition numbers of a topic, in order; empty where it does not exist."""
    return partitions_of_topics(settings, [topic])[topic]


def topic_partitions(topic: str, partitions: Sequence[int]) -> list[TopicPartition]:
    """Pair a topic with partition numbers."""
    return [TopicPartition(topic, partition) for partition in partitions]
