"""RecordSource over confluent-kafka (librdkafka): fetches, checks and unpacks in threads of its own, in C.

A record costs about a microsecond of Python here, against five or six with kafka-python.
"""

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import itemgetter
from typing import Any, cast

import numpy as np
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from streaming.brokers.probe import diagnosis
from streaming.brokers.security import librdkafka_security, scrubbed
from streaming.config import KafkaSettings
from streaming.errors import BrokerError
from streaming.kafka import FETCH_BYTES, FETCH_BYTES_PER_PARTITION
from streaming.source import LOOKUP_TIMEOUT_S, Header, Part, Records, Watch, no_collection, part_names

log = logging.getLogger(__name__)

_EARLIEST, _LATEST = (
    -2,
    -1,
)  # timestamps of ListOffsets with a meaning of their own (Kafka protocol, api key 2)
_QUEUE_KIB = 32 * 1024  # fetched ahead, over all partitions
_REFUSED = (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED)
_TIMESTAMP = itemgetter(1)  # of the pair (type, timestamp)


class ConfluentSource:
    """RecordSource over the optional client."""

    def __init__(self, settings: KafkaSettings, max_records: int) -> None:
        self._settings, self._max_records = settings, max_records
        self._lookup_s = min(LOOKUP_TIMEOUT_S, settings.request_timeout_s)
        self._watch = Watch()
        self._last_error: KafkaError | None = None
        self._topics: dict[str | None, int] = {}
        self._assigned: frozenset[Part] = frozenset()
        self._closed = False
        with self._told("make a consumer"):
            self._consumer = Consumer(self._configuration(), logger=log)

    def assign(self, start: Mapping[Part, int]) -> None:
        """See RecordSource."""
        parts = list(start)
        self._watch.start(start, self.beginnings(parts))
        self._topics = {topic: code for code, topic in enumerate(sorted({topic for topic, _ in parts}))}
        self._assigned = frozenset(parts)
        with self._told("assign partitions"):
            self._consumer.assign([TopicPartition(*part, offset) for part, offset in start.items()])

    def poll(self, timeout_s: float) -> list[Records]:
        """See RecordSource."""
        with self._told("read records"), no_collection():
            messages = self._consumer.consume(1, timeout_s)  # waits for the first, takes what else is there
            if messages and self._max_records > 1:
                messages += self._consumer.consume(self._max_records - 1, 0)
            self._raise_if_refused()
            for error in filter(None, map(Message.error, messages)):
                raise KafkaException(error)
            batches = [_columns(part, picked) for part, picked in self._split(messages).items()]
        self._watch.heard(batches, self.ends)
        return batches

    def beginnings(self, parts: Sequence[Part]) -> dict[Part, int]:
        """See RecordSource."""
        return self._offsets("beginning", _EARLIEST, parts)

    def ends(self, parts: Sequence[Part]) -> dict[Part, int]:
        """See RecordSource."""
        listed = self._offsets("end", _LATEST, parts)
        return {part: max(end, self._fetched_end(part)) for part, end in listed.items()}

    def commit(self, next_offsets: Mapping[Part, int]) -> None:
        """See RecordSource."""
        offsets = [TopicPartition(*part, offset) for part, offset in next_offsets.items()]
        with self._told("commit offsets"):
            self._consumer.commit(offsets=offsets, asynchronous=True)

    def close(self) -> None:
        """See RecordSource."""
        if not self._closed:
            self._closed = True
            self._consumer.close()

    def _configuration(self) -> dict[str, Any]:
        """See CONFIGURATION.md of librdkafka; every default that matters is set."""
        settings = self._settings
        timeout_ms = int(min(settings.request_timeout_s, 300) * 1000)
        return {
            "bootstrap.servers": settings.bootstrap_servers,
            "client.id": settings.client_id,
            "group.id": settings.group_id,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
            "allow.auto.create.topics": False,
            "check.crcs": True,
            "enable.partition.eof": False,
            "fetch.wait.max.ms": min(settings.fetch_wait_ms, max(1, timeout_ms - 1000)),
            "fetch.min.bytes": 1,
            "max.partition.fetch.bytes": FETCH_BYTES_PER_PARTITION,
            "fetch.max.bytes": FETCH_BYTES,
            "queued.max.messages.kbytes": _QUEUE_KIB,
            "queued.min.messages": max(1000, 2 * self._max_records),
            "fetch.queue.backoff.ms": 5,  # a full queue would rest for a whole second
            "socket.timeout.ms": timeout_ms,
            "topic.metadata.refresh.interval.ms": 30_000,
            "reconnect.backoff.max.ms": 2000,
            "error_cb": self._note,
            "on_commit": _log_failure,
            **librdkafka_security(settings),
        }

    def _note(self, error: KafkaError) -> None:
        """librdkafka tries again for ever and only tells; what cannot get better by itself is raised by `poll`."""
        self._last_error = error

    def _raise_if_refused(self) -> None:
        error = self._last_error
        if error is not None and (error.fatal() or error.code() in _REFUSED):
            self._last_error = None
            raise KafkaException(error)

    def _split(self, messages: list[Message]) -> dict[Part, list[Message]]:
        """Messages by partition, in their order; they come in runs of the same partition."""
        count = len(messages)
        if not count:
            return {}
        run_of = np.fromiter(map(Message.partition, messages), np.int64, count)
        if len(self._topics) > 1:
            run_of |= (
                np.fromiter(map(self._topics.__getitem__, map(Message.topic, messages)), np.int64, count)
                << 32
            )
        starts = [0, *(np.flatnonzero(np.diff(run_of)) + 1).tolist()]
        picked: dict[Part, list[Message]] = {}
        for start, stop in itertools.pairwise([*starts, count]):
            first = messages[start]
            picked.setdefault(cast(Part, (first.topic(), first.partition())), []).extend(messages[start:stop])
        return picked

    def _offsets(self, which: str, timestamp: int, parts: Sequence[Part]) -> dict[Part, int]:
        """Ask for all partitions at once; ListOffsets answers within the isolation level of the consumer."""
        names = part_names(parts)
        asked = [TopicPartition(*part, timestamp) for part in parts]
        with self._told(f"find the {which} of {names}"):
            answers = self._consumer.offsets_for_times(asked, self._lookup_s) if asked else []
            for answer in answers:
                if answer.error is not None:
                    raise KafkaException(answer.error)
        found = {(answer.topic, answer.partition): answer.offset for answer in answers}
        if len(found) < len(parts) or any(offset < 0 for offset in found.values()):
            raise BrokerError(f"the broker did not tell the {which} of {names}, got {found}")
        return found

    def _fetched_end(self, part: Part) -> int:
        """High watermark as the newest fetch told it; below zero if there was none."""
        if part not in self._assigned:
            return -1  # what an earlier assignment saw may be outdated
        known = self._consumer.get_watermark_offsets(TopicPartition(*part), cached=True)
        return int(known[1]) if known else -1

    @contextmanager
    def _told(self, action: str) -> Iterator[None]:
        try:
            yield
        except KafkaException as error:
            raise BrokerError(
                f"cannot {action} at kafka.bootstrap_servers={self._settings.bootstrap_servers!r} "
                f"({self._settings.security_protocol}): {scrubbed(self._settings, str(error.args[0]))}"
                f"{diagnosis(self._settings)}"
            ) from None  # the original's text could repeat a secret


def _columns(part: Part, messages: list[Message]) -> Records:
    count = len(messages)
    return Records(
        *part,
        np.fromiter(map(Message.offset, messages), np.int64, count),
        np.fromiter(map(_TIMESTAMP, map(Message.timestamp, messages)), np.int64, count),
        list(map(Message.key, messages)),
        list(map(Message.value, messages)),
        lambda record: _headers(messages[record]),
    )


def _headers(message: Message) -> list[Header]:
    headers: Any = message.headers() or ()
    return [(name, value.encode() if isinstance(value, str) else value or b"") for name, value in headers]


def _log_failure(error: KafkaError | None, _: Sequence[TopicPartition]) -> None:
    if error is not None:
        log.warning("the group's offsets were not committed (lag tools will be behind): %s", error)
