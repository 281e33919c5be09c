"""A middleware that Serve puts around each replica's HTTP server, before its own work on a request.

Serve watches every request for a caller that hangs up, with two tasks of asyncio. A ranking of a millisecond is over
before that could help, and the watching costs a tenth of it; so requests that only read carry the header by which
Serve lets it be. Serve calls `middlewares` where `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH` names it
(`services.local_ray`, `k8s/base/environment.env`); without that everything works, only slower.
"""

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.middleware import Middleware

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Any, Any], Awaitable[None]]

IMPORT_PATH = "serving.ingress.middlewares"
_UNWATCHED = (b"x-request-disconnect-disabled", b"?1")


class Unwatched:
    """Pure ASGI middleware: requests that only read are not watched for callers that hang up."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Any) -> None:
        """Serve one request or lifespan."""
        if scope["type"] == "http" and scope["method"] == "GET":
            scope["headers"].append(_UNWATCHED)
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """For Serve."""
    return [Middleware(Unwatched)]
