"""Spans by OpenTelemetry's SDK, sent as OTLP over HTTP. Imported only where traces are on."""

from collections.abc import Sequence

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from streaming.traces import HEADER, Attributes, Kind

_TIMEOUT_S = 5.0  # of one call of the collector
_EVERY_MS = 1000.0
_FORMAT = TraceContextTextMapPropagator()
_KINDS: dict[Kind, trace.SpanKind] = {
    "internal": trace.SpanKind.INTERNAL,
    "server": trace.SpanKind.SERVER,
    "consumer": trace.SpanKind.CONSUMER,
}


class OtelSpan:
    """See `streaming.traces.Span`."""

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        """See `streaming.traces.Span`."""
        carrier: dict[str, str] = {}
        _FORMAT.inject(carrier, trace.set_span_in_context(self._span, Context()))
        return carrier[HEADER]

    def end(
        self,
        attributes: Attributes | None = None,
        *,
        name: str | None = None,
        end_ms: float | None = None,
        failed: bool = False,
    ) -> None:
        """See `streaming.traces.Span`."""
        self._span.set_attributes(dict(attributes or {}))
        if name is not None:
            self._span.update_name(name)
        if failed:
            self._span.set_status(trace.StatusCode.ERROR)
        self._span.end(_ns(end_ms))


class OtelTracer:
    """See `streaming.traces.Tracer`.

    Args:
        endpoint: of the collector. share: of the traces begun here that are sampled. role: of this process.
    """

    def __init__(self, endpoint: str, share: float, role: str) -> None:
        provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(share)),
            resource=Resource.create({"service.name": "headrace", "headrace.role": role}),
        )
        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=_TIMEOUT_S)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MS))
        self._tracer = provider.get_tracer("headrace")

    def begin(
        self,
        name: str,
        parent: str | None = None,
        *,
        kind: Kind = "internal",
        links: Sequence[str] = (),
        start_ms: float | None = None,
        attributes: Attributes | None = None,
    ) -> OtelSpan:
        """See `streaming.traces.Tracer`."""
        span = self._tracer.start_span(
            name,
            Context() if parent is None else _context(parent),
            _KINDS[kind],
            links=[trace.Link(trace.get_current_span(_context(link)).get_span_context()) for link in links],
            start_time=_ns(start_ms),
            attributes=dict(attributes or {}),
        )
        return OtelSpan(span)


def _context(traceparent: str) -> Context:
    return _FORMAT.extract({HEADER: traceparent}, Context())


def _ns(epoch_ms: float | None) -> int | None:
    return None if epoch_ms is None else int(epoch_ms * 1e6)
