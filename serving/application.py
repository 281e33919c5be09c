"""FastAPI with Headrace's layers outside of it.

A layer added with `FastAPI.add_middleware` stands inside of what the framework does for every request: its
telemetry, limits and error pages, some 15 µs that the fast lane does not need. Here layers stand around all of that.
"""

from collections.abc import Callable, Sequence

from fastapi import FastAPI
from starlette.routing import BaseRoute, Router
from starlette.types import ASGIApp, Receive, Scope, Send


class Application:
    """A FastAPI application and what surrounds it.

    Args:
        inside: the application; may get routes later.
    """

    def __init__(self, inside: FastAPI) -> None:
        self.inside = inside
        self._outermost: ASGIApp = inside

    def surround(self, layer: Callable[..., ASGIApp], **options: object) -> None:
        """Put a pure ASGI layer around what there is; what comes later stands outside."""
        self._outermost = layer(self._outermost, **options)

    @property
    def routes(self) -> Sequence[BaseRoute]:
        """For Serve, which looks here for the name of each request's route."""
        return self.inside.routes

    @property
    def router(self) -> Router:
        """For Serve, as `routes`."""
        return self.inside.router

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or lifespan."""
        await self._outermost(scope, receive, send)
