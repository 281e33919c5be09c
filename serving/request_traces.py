"""Traces of requests: one span each, and within it one for each stage of its ranking.

The span of a request goes on where a caller's trace (header `traceparent`, W3C Trace Context) stands, and events that
the request publishes carry it on (`streaming.traces`). Rankings that came together share the work of their stages, so
each request that is traced gets the stages of its batch. Where traces are off none of this runs.
"""

from collections.abc import Awaitable, Callable, Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from serving import request_id
from serving.ask import Ask
from streaming import traces
from streaming.traces import Tracer

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_HEADER = traces.HEADER.encode()
# name, duration in s and end in epoch s of each stage, where somebody wants to know
stages: ContextVar[list[tuple[str, float, float]] | None] = ContextVar("stages", default=None)


class Traced:
    """Pure ASGI middleware, outermost: a span for each HTTP request, named by method and route.

    Args:
        app: the application inside. tracer: takes the spans.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        given = next((value.decode("latin-1") for name, value in scope["headers"] if name == _HEADER), None)
        span = self._tracer.begin(scope["method"], given, kind="server")
        followed = traces.is_sampled(span.traceparent)
        token = traces.current.set(span.traceparent if followed else None)
        try:
            await self._app(scope, receive, noting)
        finally:
            traces.current.reset(token)
            route = getattr(scope.get("route"), "path_format", None)  # a template: it names no user
            about: dict[str, str | int | float] = {
                "http.request.method": scope["method"],
                "http.response.status_code": status,
                "headrace.request_id": request_id.current(),
            }
            if route is not None:
                about["http.route"] = route
            span.end(
                about, name=f"{scope['method']} {route}" if route is not None else None, failed=status >= 500
            )


@contextmanager
def stages_told(tracer: Tracer, asks: Iterable[Ask]) -> Iterator[None]:
    """Tell the stages of what runs in here to the traces of those who ask."""
    followed = {ask.trace for ask in asks if ask.trace is not None}
    if not followed:
        yield
        return
    found: list[tuple[str, float, float]] = []
    token = stages.set(found)
    try:
        yield
    finally:
        stages.reset(token)
        for parent in followed:
            for name, duration_s, ended_s in found:
                span = tracer.begin(name, parent, start_ms=(ended_s - duration_s) * 1000)
                span.end(end_ms=ended_s * 1000)
