"""The stream of a run: every kind of record that can go wrong, and the producer that sends it as fast as it may."""

import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from services.settings import Settings
from streaming.errors import BrokerError
from streaming.kafka import make_producer

STEP_BUDGET_MS = 30_000_000  # event time of a whole run: some fifty windows
WINDOW_MS, LATENESS_MS = 600_000, 60_000
CATEGORIES = ("news", "music", "sport")
_CHUNK = 1000  # records sent between two looks at how far one may go
_ACK_TIMEOUT_S = 30.0
_RETRY_S = 0.5
_BROKEN = (  # each is wrong in a way that a plain reader sees, too
    b"",
    b"{",
    b"[]",
    b'{"user_id": "\xff\xfe"}',
    b'{"event_id": "x", "item_id": "i", "type": "view", "timestamp": 1}',  # no user
    b'{"event_id": "x", "user_id": "u1", "item_id": "i", "type": "teleport", "timestamp": %d}',
    b'{"event_id": "x", "user_id": "u1", "item_id": "i", "type": "view", "timestamp": "soon"}',
    b'{"event_id": "x", "user_id": 7.5, "item_id": "i", "type": "view", "timestamp": %d}',
)


@dataclass(frozen=True)
class Record:
    """What is handed to the producer."""

    key: bytes
    value: bytes | None
    timestamp_ms: int
    partition: int | None = None  # none: by key


class Stream:
    """`count` records of `users` users, the same for the same seed, in event time from `base_ms` on.

    Of a thousand records some 20 come twice (half of those long after, when nobody can know any more), 5 are
    malformed, 20 are later than the watermark allows, and 2 erase a user, half of them as tombstones; all are out
    of order by up to half the lateness.
    """

    def __init__(self, count: int, users: int, types: Sequence[str], seed: int, base_ms: int) -> None:
        self.count, self._types, self._base_ms = count, types, base_ms
        self._random = random.Random(seed)
        self._step_ms = STEP_BUDGET_MS / count
        weights = [self._random.lognormvariate(0, 1) for _ in range(users)]
        names = [f"user-{number:05d}" for number in range(users)]
        self._users = self._random.choices(names, weights, k=count)

    def __iter__(self) -> Iterator[Record]:
        """All records but the closing ones."""
        draw = self._random
        sent: list[Record] = []
        for number, user in enumerate(self._users):
            now_ms = self._base_ms + int(number * self._step_ms)
            kind = draw.random()
            if kind < 0.02 and sent:
                record = sent[-1 - draw.randrange(min(len(sent), 20))] if kind < 0.01 else draw.choice(sent)
            elif kind < 0.025:
                record = Record(user.encode(), self._broken(now_ms), now_ms)
            elif kind < 0.027:
                record = self._erasure(number, user, now_ms)
            else:
                late_ms = draw.randrange(LATENESS_MS, 15 * LATENESS_MS) if kind > 0.98 else 0
                record = self._event(number, user, now_ms - late_ms - draw.randrange(LATENESS_MS // 2))
                sent.append(record)
            yield record

    def closing(self, partition: int) -> Record:
        """An event so late in event time that its partition holds no window open any more."""
        time_ms = self._base_ms + STEP_BUDGET_MS + 3 * WINDOW_MS
        user = f"closing-{partition}"
        event = {"event_id": user, "user_id": user, "item_id": "end", "type": self._types[0]}
        return Record(user.encode(), _packed(event | {"timestamp": time_ms}), time_ms, partition)

    def _event(self, number: int, user: str, time_ms: int) -> Record:
        draw = self._random
        event: dict[str, Any] = {"event_id": f"e{number}", "user_id": user}
        event |= {"item_id": f"item-{draw.randrange(5000)}", "type": draw.choice(self._types)}
        event["timestamp"] = time_ms
        if draw.random() < 0.3:
            event["value"] = draw.randrange(-2000, 20_000) / 100
        if draw.random() < 0.5:
            event["context"] = {"category": draw.choice([*CATEGORIES, "unheard of"])}
        return Record(user.encode(), _packed(event), time_ms)

    def _erasure(self, number: int, user: str, time_ms: int) -> Record:
        if self._random.random() < 0.5:
            return Record(user.encode(), None, time_ms)
        event = {"event_id": f"e{number}", "user_id": user, "type": "$forget", "timestamp": time_ms}
        return Record(user.encode(), _packed(event), time_ms)

    def _broken(self, now_ms: int) -> bytes:
        chosen = self._random.choice(_BROKEN)
        return chosen % now_ms if b"%d" in chosen else chosen


def _packed(event: dict[str, Any]) -> bytes:
    return json.dumps(event, separators=(",", ":")).encode()


class Feed:
    """Sends a stream from a thread, never further than `allow` said; what fails is sent again."""

    def __init__(self, settings: Settings, stream: Stream, partitions: int) -> None:
        self._settings, self._stream, self._partitions = settings, stream, partitions
        self._allowed = 0
        self._changed = threading.Condition()
        self._stop = False
        self.acknowledged = 0
        self.retries = 0
        self.error: BaseException | None = None
        self._producer: KafkaProducer | None = None
        self._thread = threading.Thread(target=self._run, name="feed", daemon=True)
        self._thread.start()

    def allow(self, records: int) -> None:
        """Let the first `records` of the stream be sent."""
        with self._changed:
            self._allowed = max(self._allowed, records)
            self._changed.notify_all()

    def finish(self, timeout_s: float) -> None:
        """Send the rest and the closing events, and wait until the broker has acknowledged all.

        Raises:
            TimeoutError: it did not in time.
        """
        self.allow(self._stream.count)
        self._thread.join(timeout_s)
        if self.error is not None:
            raise self.error
        if self._thread.is_alive():
            raise TimeoutError(
                f"the producer has {self.acknowledged} of {self._stream.count} acknowledged after {timeout_s:.0f} s"
            )

    def stop(self) -> None:
        """Give up."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
        self._thread.join(_ACK_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._send_all()
        except BaseException as error:  # raised where the feed is waited for
            self.error = error
        finally:
            self._drop_producer()

    def _send_all(self) -> None:
        chunk: list[Record] = []
        for number, record in enumerate(self._stream):
            if len(chunk) == _CHUNK or not self._may_send(number):
                self._deliver(chunk)
                chunk = []
                self._wait_for(number)
            if self._stop:
                return
            chunk.append(record)
        self._deliver(chunk)
        self._deliver([self._stream.closing(partition) for partition in range(self._partitions)])

    def _may_send(self, number: int) -> bool:
        return self._stop or number < self._allowed

    def _wait_for(self, number: int) -> None:
        with self._changed:
            while not self._may_send(number):
                self._changed.wait(1.0)

    def _deliver(self, records: Sequence[Record]) -> None:
        """Send until all is acknowledged; what is sent twice then stands in the log twice, and counts as such."""
        left = list(records)
        while left and not self._stop:
            try:
                failed = self._attempt(left)
            except (KafkaError, BrokerError):  # no producer to be had; it is tried anew
                failed = left
            self.acknowledged += len(left) - len(failed)
            left = failed
            if left:
                self.retries += 1
                self._drop_producer()
                with self._changed:
                    self._changed.wait_for(lambda: self._stop, _RETRY_S)

    def _attempt(self, records: Sequence[Record]) -> list[Record]:
        if self._producer is None:
            self._producer = make_producer(self._settings.kafka, linger_ms=5)
        topic = self._settings.streaming.events_topic
        futures = [
            self._producer.send(topic, r.value, key=r.key, timestamp_ms=r.timestamp_ms, partition=r.partition)
            for r in records
        ]
        deadline = time.monotonic() + _ACK_TIMEOUT_S
        failed = []
        for record, future in zip(records, futures, strict=True):
            try:
                future.get(timeout=max(0.0, deadline - time.monotonic()))
            except KafkaError:
                failed.append(record)
        return failed

    def _drop_producer(self) -> None:
        if self._producer is not None:
            self._producer.close(timeout=2)
            self._producer = None
