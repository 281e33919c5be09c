"""Sends JSON records to one topic: many in flight, none lost silently."""

import json
import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from kafka import KafkaProducer
from kafka.errors import KafkaError

from services.errors import SendError

_RATE_WINDOW_S = 5.0


class Sender:
    """Counts, bounds and checks what is sent to one topic; one thread sends, others may read the counts.

    Args:
        max_in_flight: records sent and not acknowledged beyond which `send` waits.
        timeout_s: longest wait for one acknowledgement.
    """

    def __init__(
        self, producer: KafkaProducer, topic: str, max_in_flight: int = 20_000, timeout_s: float = 60.0
    ) -> None:
        self.topic = topic
        self.sent = 0
        self._producer = producer
        self._max_in_flight, self._timeout_s = max_in_flight, timeout_s
        self._in_flight: deque[Any] = deque()
        self._marks: deque[tuple[float, int]] = deque([(time.monotonic(), 0)])
        self._lock = threading.Lock()

    def send(self, key: str, record: Mapping[str, Any] | None, time_ms: int | None = None) -> Any:
        """Send a record (None: a tombstone) and return its future.

        Args:
            time_ms: the record's own time, epoch ms; None: now.

        Raises:
            SendError: this record or an earlier one failed.
        """
        value = None if record is None else json.dumps(record, ensure_ascii=False).encode()
        try:
            future = self._producer.send(self.topic, key=key.encode(), value=value, timestamp_ms=time_ms)
        except KafkaError as error:
            raise self._failed(error) from error
        self.sent += 1
        self._in_flight.append(future)
        self._reap()
        self._mark()
        return future

    def drain(self) -> None:
        """Wait until everything sent is acknowledged.

        Raises:
            SendError: something was not.
        """
        try:
            self._producer.flush(timeout=self._timeout_s)
        except KafkaError as error:
            raise self._failed(error) from error
        while self._in_flight:
            self._confirm(self._in_flight.popleft())

    def rate_per_s(self) -> float:
        """Records sent per second over the last five seconds."""
        now = time.monotonic()
        with self._lock:
            marks = [mark for mark in self._marks if now - mark[0] <= _RATE_WINDOW_S] or [self._marks[-1]]
        first_at, first_sent = marks[0]
        return (self.sent - first_sent) / max(now - first_at, 0.5)

    def _reap(self) -> None:
        while self._in_flight and (self._in_flight[0].is_done or len(self._in_flight) > self._max_in_flight):
            self._confirm(self._in_flight.popleft())

    def _confirm(self, future: Any) -> None:
        try:
            future.get(timeout=self._timeout_s)
        except KafkaError as error:
            raise self._failed(error) from error

    def _mark(self) -> None:
        now = time.monotonic()
        with self._lock:
            if now - self._marks[-1][0] >= 0.25:
                self._marks.append((now, self.sent))
                while now - self._marks[0][0] > 2 * _RATE_WINDOW_S:
                    self._marks.popleft()

    def _failed(self, error: KafkaError) -> SendError:
        return SendError(f"sending to topic {self.topic!r} failed after {self.sent} records: {error!r}")
