"""A middleware that Serve puts around each replica's HTTP server, before its own work on a request.

Serve watches every request for a caller that hangs up, with two tasks of asyncio. A ranking of a millisecond is over
before that could help, and the watching costs a tenth of it; so requests that only read carry the header by which
Serve lets it be.

uvicorn writes the head of an answer and its body one after the other, each with a system call and a packet. HAProxy
wakes up for the head, often in the replica's place, and a replica that dies then leaves half an answer behind, which
no other can complete. So both are written as one.

Serve calls `middlewares` where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it (`services.local_ray`,
`k8s/base/environment.env`); without that everything works, only slower.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Any, Send], Awaitable[None]]

IMPORT_PATH = "serving.ingress.middlewares"
_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class Ingress:
    """Pure ASGI middleware, outermost."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        """Serve one request or lifespan."""
        if scope["type"] == "http":
            if scope["method"] == "GET":
                scope["headers"].append(_UNWATCHED)
            cycle = getattr(send, "__self__", None)  # uvicorn's, which has the connection
            if hasattr(cycle, "transport"):
                send = _AtOnce(cycle, send).send
        await self._app(scope, receive, send)


class _AtOnce:
    """Holds the head of an answer back until there is something of its body."""

    __slots__ = ("_cycle", "_head", "_send")

    def __init__(self, cycle: Any, send: Send) -> None:
        self._cycle, self._send = cycle, send
        self._head: Message | None = None

    async def send(self, message: Message) -> None:
        head, self._head = self._head, None
        if message["type"] == "http.response.start":
            self._head = message
        elif head is None:
            await self._send(message)
        else:
            transport = self._cycle.transport
            self._cycle.transport = gathered = _Gathered(transport)
            try:
                await self._send(head)
                await self._send(message)
            finally:
                self._cycle.transport = transport
                gathered.flush()


class _Gathered:
    """In the place of a connection: collects what is written."""

    __slots__ = ("_parts", "_transport")

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def middlewares() -> list[Middleware]:
    """For Serve."""
    return [Middleware(Ingress)]
