"""Traces of requests and of events on their way to visible state, by OpenTelemetry; off unless an endpoint is set.

A producer names a trace in a record's header `traceparent` (W3C Trace Context); the API does so for the events that
it is given (`serving.request_traces`). For records whose trace is sampled, the ingestor tells a span `ingest`, from
the time of the record to when it went to the shards, and the shard a span `apply` within that, which ends when
readers can see the event. The span `batch` of a micro-batch, from sent to answered, is of many traces: it is told in
one and links to all. A few traces of a micro-batch are followed. The learner begins a trace for each round.

Where traces are off nothing of OpenTelemetry is imported, and no header is looked at.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal, NamedTuple, Protocol

from streaming.config import TraceSettings
from streaming.errors import StreamingError

HEADER = "traceparent"
# of what this task does now, where that is traced: the API's request
current: ContextVar[str | None] = ContextVar("traceparent", default=None)
_SAMPLED = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f][13579bdf]")

Attributes = Mapping[str, str | int | float]
Kind = Literal["internal", "server", "consumer"]


class Traced(NamedTuple):
    """An event whose trace is followed: the logical shard it goes to, and the span that is its parent there."""

    shard: int
    parent: str  # traceparent
    time_ms: int  # of its record


class Span(Protocol):
    """A span that has begun."""

    @property
    def traceparent(self) -> str:
        """Names it as the parent of others."""
        ...

    def end(
        self,
        attributes: Attributes | None = None,
        *,
        name: str | None = None,
        end_ms: float | None = None,
        failed: bool = False,
    ) -> None:
        """It is over.

        Args:
            name: a better one than it began with. end_ms: epoch ms; None: now.
        """
        ...


class Tracer(Protocol):
    """Tells spans to a collector, in the background: what cannot be told is dropped."""

    def begin(
        self,
        name: str,
        parent: str | None = None,
        *,
        kind: Kind = "internal",
        links: Sequence[str] = (),
        start_ms: float | None = None,
        attributes: Attributes | None = None,
    ) -> Span:
        """Begin a span.

        Args:
            parent: traceparent; None begins a trace, if that is to be sampled. links: traceparents of others.
            start_ms: epoch ms; None: now.
        """
        ...


def make_tracer(settings: TraceSettings, role: str, *, always: bool = False) -> Tracer | None:
    """The tracer of this process; None where traces are off.

    Args:
        role: of this process. always: every trace begun here is sampled, whatever the settings' share.

    Raises:
        StreamingError: OpenTelemetry's exporter is not installed.
    """
    if settings.endpoint is None:
        return None
    try:
        from streaming.otel import OtelTracer
    except ImportError as error:
        raise StreamingError(
            f"streaming.traces.endpoint needs OpenTelemetry ({error}): pip install 'headrace[otel]'"
        ) from error
    return OtelTracer(settings.endpoint, 1.0 if always else settings.share, role)


@contextmanager
def within(tracer: Tracer | None, name: str, **attributes: str | int | float) -> Iterator[None]:
    """A span around what runs in here and the parent of spans begun so within; failed where that raises."""
    if tracer is None:
        yield
        return
    span = tracer.begin(name, current.get(), attributes=attributes)
    token = current.set(span.traceparent)
    failed = True
    try:
        yield
        failed = False
    finally:
        current.reset(token)
        span.end(failed=failed)


def record_headers() -> list[tuple[str, bytes]]:
    """Headers for records that this task publishes."""
    traceparent = current.get()
    return [] if traceparent is None else [(HEADER, traceparent.encode())]


def is_sampled(traceparent: str) -> bool:
    """Whether it names a span of a trace that is sampled; nonsense does not."""
    return _SAMPLED.fullmatch(traceparent) is not None


def sampled(headers: Iterable[tuple[str, bytes]]) -> str | None:
    """The traceparent among the headers of a record if its trace is sampled."""
    for name, value in headers:
        if name == HEADER:
            text = value.decode("latin-1")
            return text if is_sampled(text) else None
    return None
