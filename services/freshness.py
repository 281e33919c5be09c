"""Freshness: from the produce call of an event to the first response whose state includes it.

A sampler on its own thread, so that waiting for one event holds up neither the stream nor the other requests.
"""

import queue
import threading
import time
from dataclasses import dataclass
from typing import Any

from kafka.errors import KafkaError

from services.client import Answer, ApiClient, Values
from services.errors import ApiError


@dataclass(frozen=True)
class FreshnessScore:
    """Milliseconds from produce to visible; failures are events not seen within the time-out."""

    p50: float | None
    p99: float | None
    count: int
    failed: int


@dataclass(frozen=True)
class _Probe:
    user_id: str
    produced_at: float  # time.monotonic(), s
    record: Any  # the produce future: .get(timeout) -> metadata with partition and offset


class FreshnessSampler:
    """Follows some events until the API's answers include them.

    An event that is not seen within the time-out counts as failed and enters the percentiles with the time
    waited, so that a stalled pipeline cannot look fresh.

    Args:
        per_s: events followed per second at most; one at a time.
        timeout_s: longest wait for one event.
        pause_s: between two requests for the same event; it bounds the error of a measurement.
    """

    def __init__(
        self, client: ApiClient, per_s: float = 2.0, timeout_s: float = 10.0, pause_s: float = 0.01
    ) -> None:
        self._client = client
        self._interval_s = 1.0 / per_s if per_s > 0 else float("inf")
        self._timeout_s = timeout_s
        self._pause_s = pause_s
        self._probes: queue.Queue[_Probe] = queue.Queue(maxsize=1)
        self._stop = threading.Event()
        self._busy = threading.Event()
        self._next_at = time.monotonic()
        self._values = Values()
        self._failed = 0
        self._thread = threading.Thread(target=self._run, name="freshness", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop the thread; an event under way is dropped and not counted."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def offer(self, user_id: str, produced_at: float, record: Any) -> bool:
        """Offer an event that was just sent; it is taken if it is time and no other is being followed."""
        if produced_at < self._next_at or self._busy.is_set() or self._interval_s == float("inf"):
            return False
        self._busy.set()
        self._next_at = produced_at + self._interval_s
        self._probes.put_nowait(_Probe(user_id, produced_at, record))
        return True

    def score(self) -> FreshnessScore:
        """Percentiles so far."""
        values = self._values.percentiles()
        return FreshnessScore(values.p50, values.p99, values.count, self._failed)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                probe = self._probes.get(timeout=0.2)
            except queue.Empty:
                continue
            self._follow(probe)
            self._busy.clear()

    def _follow(self, probe: _Probe) -> None:
        deadline = probe.produced_at + self._timeout_s
        try:
            metadata = probe.record.get(timeout=self._timeout_s)
        except KafkaError:  # whoever sent the event raises it; here it only means "never became visible"
            self._failed += 1
            return
        while not self._stop.is_set():
            answer = self._ask(probe.user_id)
            if answer is not None and _includes(answer, metadata.partition, metadata.offset):
                self._values.add((answer.received_at - probe.produced_at) * 1000.0)
                return
            now = time.monotonic()
            if now > deadline:
                self._failed += 1
                self._values.add((now - probe.produced_at) * 1000.0)
                return
            self._stop.wait(self._pause_s)

    def _ask(self, user_id: str) -> Answer | None:
        try:
            return self._client.recommend(user_id)
        except ApiError:  # the client counts it
            return None


def _includes(answer: Answer, partition: int, offset: int) -> bool:
    return answer.partition == partition and answer.offset is not None and answer.offset >= offset
