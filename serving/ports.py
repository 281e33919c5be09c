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

from serving import request_id
from serving.errors import ConflictError, InvalidRequestError, UnavailableError
from serving.models import Acknowledgement, NewEvent
from streaming.config import KafkaSettings, Source
from streaming.errors import BrokerError
from streaming.formats.shape import RecordShape, ShapeError
from streaming.kafka import make_producer
from streaming.traces import record_headers

_NAMESPACE = uuid.UUID("5b1c2c7e-0d0f-5b0e-9d55-3a8b6f0f6a51")  # of event ids made here


class EventSink(Protocol):
    """Takes events for the stream."""

    async def produce(self, events: Sequence[NewEvent]) -> list[Acknowledgement]:
        """Publish events and wait until the broker has them; one acknowledgement each, in order.

        Raises:
            InvalidRequestError: the topic's settings leave no way to write one of them; none is published.
            UnavailableError: the broker did not take all of them in time, or the topic is not one to write to.
        """
        ...

    async def forget(self, user_id: str) -> Acknowledgement:
        """Publish the erasure of a user and wait until the broker has it.

        Raises:
            UnavailableError: the broker did not take it in time.
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

    async def scale(self, shard_actors: int | None, ingestors: int | None) -> dict[str, int]:
        """Have the pipeline run with other numbers of actors; None: as many as now.

        Raises:
            InvalidRequestError: these numbers cannot be.
            UnavailableError: it did not answer in time.
        """
        ...

    async def history(self) -> dict[str, Any]:
        """Return how it did over the last minutes, in columns; see `serving.models.History`.

        Raises:
            UnavailableError: it did not answer in time.
        """
        ...

    async def recent_users(self, count: int) -> list[str]:
        """Return users whom the newest events are of, newest first.

        Raises:
            UnavailableError: it did not answer in time.
        """
        ...

    async def attack(self, order: dict[str, Any]) -> int:
        """Begin to send fake users, as `serving.models.AttackRequest` has it; returns the attack's number.

        Raises:
            ConflictError: one is under way.
            UnavailableError: it did not answer in time.
        """
        ...


class KafkaSink:
    """Publishes to a source's topic, keyed by user, so that one user's events stay in order.

    Records are written in the shape that the source's mapping reads. The producer is made at the first use and
    kept; it is idempotent and waits for all replicas.

    Args:
        clock_ms: time of events that come without one, and of erasures, epoch ms.
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
        self._shape = RecordShape(source)
        self._producer: KafkaProducer | None = None
        self._lock = threading.Lock()

    async def produce(self, events: Sequence[NewEvent]) -> list[Acknowledgement]:
        """See `EventSink.produce`. The waiting is done in a thread, beside the event loop."""
        if self._source.format != "json":
            raise UnavailableError(
                f"topic {self._source.topic!r} holds {self._source.format} records, which the API does not write; "
                "publish events there with a producer of your own, or put a JSON source first in streaming.sources"
            )
        ids = [event.event_id or _id_of(event, place) for place, event in enumerate(events)]
        records = []
        for position, (event, event_id) in enumerate(zip(events, ids, strict=True)):
            try:
                value = self._encode(event, event_id)
            except ShapeError as error:
                raise InvalidRequestError(f"/events/{position}/{error.field}", error.reason) from None
            except ValueError:
                place = f"/events/{position}/context"
                raise InvalidRequestError(place, "holds a number that is not finite; expected JSON") from None
            time_ms = self._time_of(event) if self._shape.uses_record_time else None
            records.append((event.user_id, value, time_ms))
        return await asyncio.to_thread(self._send, ids, records)

    async def forget(self, user_id: str) -> Acknowledgement:
        """See `EventSink.forget`. Where no record can ask for it, a tombstone does: the user as key, no value."""
        event_id, now_ms = str(uuid.uuid4()), self._clock_ms()
        document = self._shape.erasure(user_id, event_id, now_ms)
        value = None if document is None else _to_json(document)
        [done] = await asyncio.to_thread(self._send, [event_id], [(user_id, value, now_ms)])
        return done

    def _send(
        self, ids: Sequence[str], records: Sequence[tuple[str, bytes | None, int | None]]
    ) -> list[Acknowledgement]:
        """Send records (user, value, time in epoch ms or the producer's own) and await all of them."""
        deadline = time.monotonic() + self._timeout_s
        done: list[Acknowledgement] = []
        try:
            with self._lock:
                self._producer = self._producer or make_producer(self._kafka, linger_ms=0)
            producer, topic, headers = self._producer, self._source.topic, record_headers()
            sent = [
                producer.send(topic, key=user.encode(), value=value, timestamp_ms=time_ms, headers=headers)
                for user, value, time_ms in records
            ]
            for event_id, future in zip(ids, sent, strict=True):
                record = future.get(timeout=max(0.0, deadline - time.monotonic()))
                done.append(
                    Acknowledgement(event_id=event_id, partition=record.partition, offset=record.offset)
                )
        except (KafkaError, BrokerError) as error:
            raise UnavailableError(
                f"the broker acknowledged {len(done)} of {len(ids)} events within {self._timeout_s} s: "
                f"{error!r}; send them again with the same event_id, repeats are dropped"
            ) from error
        return done

    def _time_of(self, event: NewEvent) -> int:
        return self._clock_ms() if event.timestamp is None else event.timestamp

    def _encode(self, event: NewEvent, event_id: str) -> bytes:
        """Write the record in the shape that the settings say the topic has."""
        fields = event.model_dump(exclude={"context"}, exclude_none=True) | {"event_id": event_id}
        if "timestamp" not in self._source.constants:
            fields["timestamp"] = self._time_of(event)
        # what the settings map into the context goes before what the caller put there
        around = {} if event.context is None else {"context": event.context}
        return _to_json(self._shape.document(fields, around))

    def close(self) -> None:
        """Flush and close the producer."""
        with self._lock:
            if self._producer is not None:
                self._producer.close(timeout=self._timeout_s)
                self._producer = None


def _id_of(event: NewEvent, place: int) -> str:
    """An id for an event without one: the same when the same request is sent again, so that it counts once.

    A request is the same by its X-Request-ID, which a caller sends, or a proxy that repeats a request.
    """
    name = f"{request_id.current()}/{place}/{event.model_dump_json()}"
    return str(uuid.uuid5(_NAMESPACE, name) if request_id.current() != request_id.NONE else uuid.uuid4())


def _to_json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, ensure_ascii=False, allow_nan=False).encode()


class ServePipeline:
    """Asks the Supervisor deployment of the `pipeline` application through a Serve handle."""

    def __init__(
        self, timeout_s: float, deployment: str = "Supervisor", application: str = "pipeline"
    ) -> None:
        self._timeout_s, self._deployment, self._application = timeout_s, deployment, application
        self._handle: Any = None

    async def status(self) -> dict[str, Any]:
        """See `Pipeline.status`."""
        return await self._ask("status")

    async def scale(self, shard_actors: int | None, ingestors: int | None) -> dict[str, int]:
        """See `Pipeline.scale`."""
        try:
            return await self._ask("scale", shard_actors, ingestors)
        except ValueError as error:  # as the supervisor raised it
            raise InvalidRequestError("", str(error).strip().splitlines()[-1]) from None

    async def history(self) -> dict[str, Any]:
        """See `Pipeline.history`."""
        return await self._ask("history")

    async def recent_users(self, count: int) -> list[str]:
        """See `Pipeline.recent_users`."""
        return list((await self._ask("recent_users", count))["users"])

    async def attack(self, order: dict[str, Any]) -> int:
        """See `Pipeline.attack`."""
        try:
            return int((await self._ask("attack", order))["number"])
        except ValueError as error:  # as the supervisor raised it
            raise ConflictError(str(error).strip().splitlines()[-1]) from None

    async def _ask(self, method: str, *arguments: Any) -> dict[str, Any]:
        import ray
        from ray import serve

        if not ray.is_initialized():  # asking for a handle would start a Ray of its own
            raise UnavailableError("there is no supervisor: this process does not run under Ray")
        try:
            if self._handle is None:
                self._handle = serve.get_deployment_handle(self._deployment, self._application)
            call = getattr(self._handle, method).remote(*arguments)
            return dict(await asyncio.wait_for(call, self._timeout_s))
        except ValueError:
            raise
        except Exception as error:
            # Serve raises a dozen kinds here (not deployed, starting, replica died): all mean "no answer now"
            self._handle = None
            raise UnavailableError(
                f"the supervisor did not answer within {self._timeout_s} s: {type(error).__name__}: {error}"
            ) from error
