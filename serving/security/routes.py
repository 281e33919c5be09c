"""Routes that say which scope they need, are refused before their body is read, and take strict JSON only.

FastAPI's own `Security(...)` dependencies run after the body was read and parsed, and two of them (a key or a token)
cost 30 µs a request; looking up one scope before the handler costs less than one.
"""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic_core import from_json

from serving.security.caller import caller_of
from serving.security.config import Scope

NEEDS = "x-required-scope"  # in the OpenAPI document: the scope of an operation; absent where it is PUBLIC

PUBLIC: dict[str, Any] = {NEEDS: None}


def require(scope: Scope) -> dict[str, Any]:
    """Say which scope a `GuardedRoute` needs: `@router.get(…, openapi_extra=require("read"))`."""
    return {NEEDS: scope}


class StrictRequest(Request):
    """A request whose body is JSON as RFC 8259 has it.

    Python's own parser takes NaN and halves of surrogate pairs, which nobody can encode again.
    """

    async def json(self) -> Any:
        """See `Request.json`.

        Raises:
            json.JSONDecodeError: it is not.
        """
        try:
            return from_json(await self.body(), allow_inf_nan=False)
        except ValueError as error:
            raise json.JSONDecodeError(str(error), "", 0) from None


class GuardedRoute(APIRoute):
    """A route that only callers with its scope get to.

    Raises:
        TypeError: when it is made, where it says neither `require(scope)` nor `PUBLIC`: nothing is open by oversight.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """See `APIRoute.get_route_handler`."""
        handler = super().get_route_handler()
        extra = self.openapi_extra or {}
        if NEEDS not in extra:
            raise TypeError(
                f"{self.path}: expected openapi_extra=require(scope) or openapi_extra=PUBLIC, got {extra}"
            )
        scope: Scope | None = extra[NEEDS]
        if scope is None:
            return handler
        has_body = self.body_field is not None

        async def guarded(request: Request) -> Response:
            caller = caller_of(request.scope)
            if scope not in caller.scopes:
                raise request.app.state.guard.refusal(caller, scope)
            return await handler(StrictRequest(request.scope, request.receive) if has_body else request)

        return guarded
