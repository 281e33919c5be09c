"""The only place that makes Kafka clients, so that every default that matters is set here, once.

kafka-python's consumer defaults (commit by itself, start at the newest record, read uncommitted) would each
lose or double records here; all are set explicitly.
"""

import contextlib
from collections.abc import Sequence
from typing import Any

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic
from kafka.errors import KafkaError, TopicAlreadyExistsError

from streaming.config import KafkaSettings
from streaming.errors import BrokerError


def _connection(settings: KafkaSettings) -> dict[str, Any]:
    password = settings.sasl_password.get_secret_value() if settings.sasl_password else None
    return {
        "bootstrap_servers": [server.strip() for server in settings.bootstrap_servers.split(",")],
        "client_id": settings.client_id,
        "security_protocol": settings.security_protocol,
        "sasl_mechanism": settings.sasl_mechanism,
        "sasl_plain_username": settings.sasl_username,
        "sasl_plain_password": password,
        "ssl_cafile": settings.ssl_cafile,
        "request_timeout_ms": int(settings.request_timeout_s * 1000),
        "bootstrap_timeout_ms": int(settings.request_timeout_s * 1000),
        "reconnect_backoff_max_ms": 2000,
    }


@contextlib.contextmanager
def _translated(settings: KafkaSettings, action: str) -> Any:
    try:
        yield
    except KafkaError as error:
        raise BrokerError(
            f"cannot {action} at kafka.bootstrap_servers={settings.bootstrap_servers!r} "
            f"({settings.security_protocol}): {error!r}"
        ) from error


def make_producer(settings: KafkaSettings, *, linger_ms: int = 2) -> KafkaProducer:
    """Make an idempotent producer that waits for all replicas.

    Args:
        linger_ms: how long a record may wait for company; more means larger batches and later records.
    """
    with _translated(settings, "connect a producer"):
        return KafkaProducer(
            **_connection(settings),
            acks="all",
            enable_idempotence=True,
            linger_ms=linger_ms,
            batch_size=256 * 1024,
            max_block_ms=int(settings.request_timeout_s * 1000),
        )


def make_consumer(
    settings: KafkaSettings, max_poll_records: int = 5000, fetch_wait_ms: int | None = None
) -> KafkaConsumer:
    """Make a consumer for assigned partitions: no group membership, no commits of its own.

    Out-of-range offsets raise instead of jumping silently (`auto_offset_reset="none"`).
    """
    with _translated(settings, "connect a consumer"):
        return KafkaConsumer(
            **_connection(settings),
            group_id=settings.group_id,
            enable_auto_commit=False,
            auto_offset_reset="none",
            isolation_level="read_committed",
            allow_auto_create_topics=False,
            max_poll_records=max_poll_records,
            fetch_max_wait_ms=fetch_wait_ms or settings.fetch_wait_ms,
            max_partition_fetch_bytes=1024 * 1024,  # a turn of one partition must not take seconds
            metadata_max_age_ms=30_000,
        )


def ensure_topics(settings: KafkaSettings, events: Sequence[str] = ("events",)) -> None:
    """Create the topics of events, items and dead letters that do not exist; existing ones are left as they are."""
    with _translated(settings, "create topics"):
        admin = KafkaAdminClient(**_connection(settings))
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


def partitions_of(settings: KafkaSettings, topic: str) -> list[int]:
    """List the partition numbers of a topic, in order; empty where it does not exist."""
    with _translated(settings, f"list the partitions of topic {topic!r}"):
        consumer = make_consumer(settings)
        try:
            return sorted(consumer.partitions_for_topic(topic) or ())
        finally:
            consumer.close(autocommit=False)


def topic_partitions(topic: str, partitions: Sequence[int]) -> list[TopicPartition]:
    """Pair a topic with partition numbers."""
    return [TopicPartition(topic, partition) for partition in partitions]
