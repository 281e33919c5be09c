"""What the API needs from the rest of the system, as two small interfaces, and their real implementations.

They are the seam at which the routes can be run without Kafka and without Ray.
"""

import asyncio
import json
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from kafka import KafkaProducer
from kafka.errors import KafkaError

from serving.errors import UnavailableError
from serving.models import Acknowledgement, NewEvent
from streaming.config import KafkaSettings, Source
from streaming.errors import BrokerError
from streaming.kafka import make_producer


class EventSink(Protocol):
    """Takes events for the stream."""

    async def produce(self, events: Sequence[NewEvent]) -> list[Acknowledgement]:
        """Publish events and wait until the broker has them; one acknowledgement each, in order.

        Raises:
            UnavailableError: the broker did not take all of them in time.
        """
        ...


class Pipeline(Protocol):
    """Tells how the streaming side is doing."""

    async def status(self) -> dict[str, Any]:
        """Return the supervisor's status.

        Raises:
            UnavailableError: it did not answer in time.
        """
        ...


class KafkaSink:
    """Publishes to the events topic, keyed by user, so that one user's events stay in order.

    The producer is made at the first use and kept; it is idempotent and waits for all replicas.
    """

    def __init__(
        self,
        kafka: KafkaSettings,
        source: Source,
        timeout_s: float,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        self._clock_ms = clock_ms or (lambda: int(time.time() * 1000))
        self._kafka, self._source, self._timeout_s = kafka, source, timeout_s
        self._producer: KafkaProducer | None = None
        self._lock = threading.Lock()

    async def produce(self, events: Sequence[NewEvent]) -> list[Acknowledgement]:
        """See `EventSink.produce`. The waiting is done in a thread, beside the event loop."""
        return await asyncio.to_thread(self._produce, events)

    def _produce(self, events: Sequence[NewEvent]) -> list[Acknowledgement]:
        deadline = time.monotonic() + self._timeout_s
        ids = [event.event_id or str(uuid.uuid4()) for event in events]
        done: list[Acknowledgement] = []
        try:
            with self._lock:
                self._producer = self._producer or make_producer(self._kafka, linger_ms=0)
            producer, topic = self._producer, self._source.topic
            sent = [
                producer.send(topic, key=event.user_id.encode(), value=self._encode(event, event_id))
                for event, event_id in zip(events, ids, strict=True)
            ]
            for event_id, future in zip(ids, sent, strict=True):
                record = future.get(timeout=max(0.0, deadline - time.monotonic()))
                done.append(
                    Acknowledgement(event_id=event_id, partition=record.partition, offset=record.offset)
                )
        except (KafkaError, BrokerError) as error:
            raise UnavailableError(
                f"the broker acknowledged {len(done)} of {len(events)} events within {self._timeout_s} s: "
                f"{error!r}; send them again with the same event_id, repeats are dropped"
            ) from error
        return done

    def _encode(self, event: NewEvent, event_id: str) -> bytes:
        """Write the record in the shape that the settings say the topic has."""
        timestamp = self._clock_ms() if event.timestamp is None else event.timestamp
        known = event.model_dump(exclude={"context"}, exclude_none=True)
        known |= {"event_id": event_id, "timestamp": timestamp}
        record: dict[str, Any] = {}
        for name, value in known.items():
            path: str | None = getattr(self._source.fields, name, name)
            if path is not None:
                *parents, leaf = path.split(".")
                node = record
                for parent in parents:
                    node = node.setdefault(parent, {})
                node[leaf] = value
        if event.context is not None:  # what the settings map into it goes before what the caller put there
            record["context"] = event.context | record.get("context", {})
        return json.dumps(record, ensure_ascii=False).encode()

    def close(self) -> None:
        """Flush and close the producer."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=self._timeout_s)
                self._producer = None


class ServePipeline:
    """Asks the Supervisor deployment of the `pipeline` application through a Serve handle."""

    def __init__(
        self, timeout_s: float, deployment: str = "Supervisor", application: str = "pipeline"
    ) -> None:
        self._timeout_s, self._deployment, self._application = timeout_s, deployment, application
        self._handle: Any = None

    async def status(self) -> dict[str, Any]:
        """See `Pipeline.status`."""
        import ray
        from ray import serve

        if not ray.is_initialized():  # asking for a handle would start a Ray of its own
            raise UnavailableError("there is no supervisor: this process does not run under Ray")
        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(self._deployment, self._application)
            found = await asyncio.wait_for(self._handle.status.remote(), self._timeout_s)
            return dict(found)
        except Exception as error:
            # Serve raises a dozen kinds here (not deployed, starting, replica died): all mean "no answer now"
            self._handle = None
            raise UnavailableError(
                f"the supervisor did not answer within {self._timeout_s} s: {type(error).__name__}: {error}"
            ) from error
