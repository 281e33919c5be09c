"""The most frequent request, past the framework.

`GET /v1/recommendations/{user_id}` with no parameter but `k` needs none of FastAPI's parsing, and that costs as much
as encoding a history. What is answered here is what the route would answer; everything else goes on to it.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from serving import request_id
from serving.ask import Ask
from serving.batching import MicroBatcher
from serving.limits import Limits
from serving.security.caller import caller_of
from serving.security.guard import Guard

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_PREFIX = "/v1/recommendations/"
_ONLY_K = re.compile(rb"(?:k=([0-9]{1,5}))?")


@dataclass(frozen=True)
class _Route:
    path_format: str = f"{_PREFIX}{{user_id}}"  # as FastAPI calls it, for metrics


_ROUTE = _Route()


class FastLane:
    """Pure ASGI middleware, innermost.

    Args:
        app: takes everything else. batcher: ranks. limits: of requests. guard: says who may ask.
    """

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
        batcher: MicroBatcher,
        limits: Limits,
        guard: Guard,
    ) -> None:
        self._app, self._batcher, self._limits, self._guard = app, batcher, limits, guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or lifespan."""
        if scope["type"] == "http" and scope["method"] == "GET" and scope["path"].startswith(_PREFIX):
            plain = _ONLY_K.fullmatch(scope["query_string"])
            user_id = scope["path"][len(_PREFIX) :]
            if plain and user_id:
                scope["route"] = _ROUTE
                await self._recommend(user_id, plain[1], scope, send)
                return
        await self._app(scope, receive, send)

    async def _recommend(self, user_id: str, k: bytes | None, scope: Scope, send: Send) -> None:
        self._guard.require(caller_of(scope), "read")
        known = next(
            (value.decode("latin-1") for name, value in scope["headers"] if name == b"if-none-match"), None
        )
        ask = Ask(
            user_id=user_id,
            k=int(k) if k else None,
            place="query",
            request_id=request_id.current(),
            tags=known,
        )
        self._limits.check_ask(ask)
        answered = await self._batcher.ask(ask)
        headers = [(b"etag", answered.tag.encode())] if answered.tag else []
        body, status = b"", 304
        if answered.body is not None:
            body, status = answered.body.__pydantic_serializer__.to_json(answered.body), 200
            headers += [(b"content-length", b"%d" % len(body)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})
