"""What was shown to whom, written to a topic: for evaluation, and as training data with what was not chosen.

A request puts a reference to its answer into a bounded queue and goes on; a thread renders and sends it. A broker
that is slow or away costs impressions, which are counted, and never a request. Records are JSON, keyed by user, so
that one user's impressions are in order:

    {"request_id": "…", "user_id": "259", "session": null, "time": 1763805600000,
     "experiment": "wider", "arm": "control", "model": "v0012", "state_partition": 2, "state_offset": 4711,
     "positions": [0, 1], "items": ["50", "181"], "scores": [9.1, 8.7], "propensities": null}

`arm` is what the user was assigned, `model` what ranked: where an arm failed, they differ. `propensities` are
probabilities, given the user, with which exploration shows each item at its place. Records hold user ids: give the
topic a retention, as an erasure does not reach into it.
"""

import json
import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from kafka import KafkaProducer
from kafka.errors import KafkaError

from serving.ask import Ask
from serving.errors import ServingError
from serving.experiments import metrics
from serving.experiments.assign import unit
from serving.experiments.config import ImpressionSettings
from serving.models import Recommendations
from serving.pages import cursor_of
from serving.ranking import Answered
from streaming.config import KafkaSettings
from streaming.errors import BrokerError
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_producer

logger = logging.getLogger(__name__)

_RETRY_S = 5.0  # after the broker could not be reached
_LINGER_MS = 50  # nobody waits for an impression; larger batches cost less
_SALT = hash_one("impressions")  # another sample than any experiment's


class _Shown(NamedTuple):
    ask: Ask
    body: Recommendations
    time_ms: int


class ImpressionLog:
    """Writes impressions from a thread of its own.

    Args:
        kafka: how to reach the broker. settings: topic, share, size of the queue.
        clock_ms: time of what is shown, epoch ms: the same clock as that of the events.
        connect: makes the producer; raises BrokerError.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        settings: ImpressionSettings,
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
        connect: Callable[[KafkaSettings, str], KafkaProducer] | None = None,
    ) -> None:
        self._kafka, self._settings, self._clock_ms = kafka, settings, clock_ms
        self._connect = connect or _connect
        self._waiting: queue.Queue[_Shown] = queue.Queue(settings.queue)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="serving-impressions", daemon=True)
        self._thread.start()

    def log(self, asks: Sequence[Ask], answers: Sequence[Answered | ServingError]) -> None:
        """Take in what was answered; returns at once and never raises. Errors and empty lists are no impressions."""
        time_ms = 0
        for ask, answered in zip(asks, answers, strict=True):
            if isinstance(answered, ServingError) or answered.body is None or not answered.body.items:
                continue
            if not self._sampled(ask):
                continue
            time_ms = time_ms or self._clock_ms()
            try:
                self._waiting.put_nowait(_Shown(ask, answered.body, time_ms))
            except queue.Full:
                metrics.IMPRESSIONS_LOST.labels("queue_full").inc()

    def _sampled(self, ask: Ask) -> bool:
        """By user, so that all or nothing of a user is there; without one by session, or by request."""
        share = self._settings.share
        return share >= 1 or unit(ask.user_id or ask.session or ask.request_id or "", _SALT) < share

    def close(self, timeout_s: float = 10.0) -> None:
        """Write what waits, for at most `timeout_s`, and leave the broker."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        producer: KafkaProducer | None = None
        while not (self._stopping.is_set() and (producer is None or self._waiting.empty())):
            try:
                if producer is None:
                    producer = self._connect(self._kafka, self._settings.topic)
                self._send(producer)
            except (KafkaError, BrokerError) as error:
                logger.warning("impressions cannot be written now: %s", error)
                self._stopping.wait(_RETRY_S)
        if producer is not None:
            producer.close(timeout=5)

    def _send(self, producer: KafkaProducer) -> None:
        """Send the next impression, if one comes soon."""
        try:
            shown = self._waiting.get(timeout=0.2)
        except queue.Empty:
            return
        key = shown.ask.user_id or shown.ask.session
        value = json.dumps(record_of(shown.ask, shown.body, shown.time_ms), ensure_ascii=False).encode()
        try:
            sent = producer.send(self._settings.topic, key=key.encode() if key else None, value=value)
        except KafkaError:
            metrics.IMPRESSIONS_LOST.labels("broker").inc()
            raise
        sent.add_callback(lambda _: metrics.IMPRESSIONS_WRITTEN.inc())
        sent.add_errback(lambda _: metrics.IMPRESSIONS_LOST.labels("broker").inc())


def record_of(ask: Ask, body: Recommendations, time_ms: int) -> dict[str, Any]:
    """An impression as it stands in the topic; see the module's docstring."""
    cursor = cursor_of(ask)
    start = cursor.start if cursor else 0
    items, part = body.items, body.experiment
    explored = items[0].propensity is not None
    return {
        "request_id": ask.request_id,
        "user_id": ask.user_id,
        "session": ask.session,
        "time": time_ms,
        "experiment": part.name if part else None,
        "arm": part.arm if part else None,
        "model": body.model.version,
        "state_partition": body.state.partition,
        "state_offset": body.state.offset,
        "positions": list(range(start, start + len(items))),
        "items": [item.item_id for item in items],
        "scores": [item.score for item in items],
        "propensities": [item.propensity for item in items] if explored else None,
    }


def _connect(kafka: KafkaSettings, topic: str) -> KafkaProducer:
    ensure_topics(kafka, [topic])
    return make_producer(kafka, linger_ms=_LINGER_MS)
