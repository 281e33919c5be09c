"""What surrounds every request: an id, who may ask, how much at once, and how errors look.

One pure ASGI layer of about 7 µs a request; a key or a rate adds 4 µs, looking whether to compress 8 µs.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from serving import problems, request_id
from serving.application import Application
from serving.errors import OverloadedError
from serving.page.assets import BELOW, PAGE
from serving.security.caller import CALLER
from serving.security.config import SecuritySettings
from serving.security.guard import Guard
from serving.security.openapi import document

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_GZIP_LEVEL = 4  # of 1..9: level 9 takes nearly twice the time for a twentieth less
_RETRY_AFTER_S = 1.0

_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),  # paths hold ids of users
]
_PRIVATE = (b"cache-control", b"private, no-cache")  # where a route says nothing else
_VARY = (b"vary", b"Accept-Encoding")


class Envelope:
    """Middleware that admits, limits and names requests, and turns every error into problem details.

    Args:
        app: the application inside.
        guard: knows who may ask.
        settings: bounds.
        name_answers: put the request's id into the answer; False under Ray Serve, which does so itself.
    """

    def __init__(self, app: App, guard: Guard, settings: SecuritySettings, name_answers: bool = True) -> None:
        self._app, self._guard, self._name_answers = app, guard, name_answers
        self._body_max, self._in_flight_max = settings.body_max_bytes, settings.in_flight_max
        self._open = frozenset((*settings.open_paths, PAGE))
        self._open_below = tuple(f"{path}/" for path in (*settings.open_paths, BELOW))
        self._gzip: App | None = None
        if settings.gzip_min_bytes is not None:
            self._gzip = GZipMiddleware(app, settings.gzip_min_bytes, _GZIP_LEVEL)
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        name = request_id.begin(headers.get(b"x-request-id"))
        app, extra = self._app, _HEADERS
        if self._gzip is not None:
            if b"gzip" in headers.get(b"accept-encoding", b""):
                app = self._gzip  # which says itself what the answer varies with
            else:
                extra = [*extra, _VARY]
        if self._name_answers:
            extra = [*extra, (b"x-request-id", name.encode())]
        started = False

        async def finishing(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                own = message.get("headers", [])
                said = any(header[0] == b"cache-control" for header in own)
                message["headers"] = [*own, *extra] if said else [*own, *extra, _PRIVATE]
            await send(message)

        try:
            if self._is_open(scope["path"]):
                scope[CALLER] = self._guard.anonymous
                await app(scope, self._bounded(scope, headers, receive), finishing)
            else:
                scope[CALLER] = await self._guard.admit(scope, headers)
                await self._work(app, scope, self._bounded(scope, headers, receive), finishing)
        except Exception as error:
            answer = problems.answer(scope, error)
            if started:  # too late to say so: the server cuts the connection
                raise
            await answer(scope, receive, finishing)

    def _is_open(self, path: str) -> bool:
        return path in self._open or path.startswith(self._open_below)

    async def _work(self, app: App, scope: Scope, receive: Receive, send: Send) -> None:
        if self._in_flight >= self._in_flight_max:
            raise OverloadedError(
                f"this replica already works on {self._in_flight} requests (setting serving.security.in_flight_max)",
                _RETRY_AFTER_S,
            )
        self._in_flight += 1
        try:
            await app(scope, receive, send)
        finally:
            self._in_flight -= 1

    def _bounded(self, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Receive:
        """Refuse a body that is too large: by its declared length at once, else as soon as it is.

        Raises:
            HTTPException: 413. FastAPI passes this kind on where it reads a body, and makes a 400 of others.
        """
        declared = headers.get(b"content-length")
        if declared is not None and declared.isdigit():  # the server holds the body to it
            if int(declared) > self._body_max:
                raise self._too_large(f"{int(declared)} bytes")
            return receive
        if scope["method"] in ("GET", "HEAD") and b"transfer-encoding" not in headers:
            return receive
        read = 0

        async def counting() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._body_max:
                    raise self._too_large("more")
            return message

        return counting

    def _too_large(self, seen: str) -> HTTPException:
        expected = (
            f"expected a body of at most {self._body_max} bytes (setting serving.security.body_max_bytes)"
        )
        return HTTPException(413, f"{expected}, got {seen}")


class Explained:
    """Middleware inside the framework: errors become problem details before the framework makes a page of them."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or lifespan."""
        started = False

        async def noting(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, noting)
        except Exception as error:
            if started or scope["type"] != "http":
                raise
            await problems.answer(scope, error)(scope, receive, send)


def install(app: Application, guard: Guard, settings: SecuritySettings, name_answers: bool = True) -> None:
    """Put the envelope around an application, and CORS around that where the settings name origins.

    Its routes are to be `GuardedRoute`s. Layers added later stand outside.

    Args:
        guard: knows who may ask.
        settings: what `guard` was made from.
        name_answers: see `Envelope`.
    """
    app.inside.state.guard = guard
    problems.install(app.inside)
    document(app.inside, guard)
    app.inside.add_middleware(Explained)
    app.surround(Envelope, guard=guard, settings=settings, name_answers=name_answers)
    if settings.cors_origins:
        app.surround(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=("Authorization", "Content-Type", "If-None-Match", "X-API-Key", "X-Request-ID"),
            expose_headers=("ETag", "Retry-After", "X-Request-ID"),
            max_age=600,
        )
