"""Errors as RFC 9457 problem details, `application/problem+json`, for every way a request can fail."""

import json
import logging
import math
import traceback
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving import request_id
from serving.describe import describe_erasures
from serving.errors import GoneError, InvalidRequestError, ServingError, UnauthorizedError
from serving.models import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_CHALLENGE = 'ApiKey header="X-API-Key", Bearer realm="headrace"'


def describe(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Say in the OpenAPI document which problems a route may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every error of `app` with problem details."""
    for kind in (ServingError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _handle)


async def _handle(request: Request, error: Exception) -> Response:
    return answer(request.scope, error)


def answer(scope: Mapping[str, Any], error: Exception) -> Response:
    """Render an error of the request with this ASGI scope; what nobody foresaw is logged.

    The problem's `instance` is the path of the request, `request_id` its id.
    """
    headers: dict[str, str] = {}
    if isinstance(error, ServingError):
        problem = _serving_error(error, headers)
    elif isinstance(error, RequestValidationError):
        problem = _validation_error(error)
    elif isinstance(error, HTTPException):
        problem = _http_error(scope, error, headers)
    else:
        problem = _unexpected(scope, error)
    body = problem.model_dump(exclude_none=True)
    body |= {"instance": scope["path"], "request_id": request_id.current()}
    content = json.dumps(body, ensure_ascii=True)  # a path may hold half a surrogate pair
    return Response(content, problem.status, headers, media_type=MEDIA_TYPE)


def _serving_error(error: ServingError, headers: dict[str, str]) -> Problem:
    errors = None
    if isinstance(error, InvalidRequestError):
        errors = [{"pointer": error.pointer, "detail": error.detail}]
    if isinstance(error, UnauthorizedError):
        headers["WWW-Authenticate"] = _CHALLENGE
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    erasures = describe_erasures(error.proofs) if isinstance(error, GoneError) else None
    return Problem(
        title=error.title, status=error.status, detail=str(error), errors=errors, erasures=erasures
    )


def _validation_error(error: RequestValidationError) -> Problem:
    errors = [_wrong_field(e) for e in error.errors()[:20]]
    text = "; ".join(f"{e['pointer']}: {e['detail']}".removeprefix(": ") for e in errors[:3])
    return Problem(title="Invalid request", status=422, detail=text, errors=errors)


def _wrong_field(error: dict[str, Any]) -> dict[str, str]:
    if error["type"] == "json_invalid":
        return {"pointer": "", "detail": f"expected JSON, got what is none: {error['ctx']['error']}"}
    return {"pointer": _pointer(error["loc"]), "detail": _detail(error)}


def _pointer(location: tuple[Any, ...]) -> str:
    """`("body", "events", 0, "type")` → `/events/0/type`; `("query", "k")` → `query/k`."""
    kind, *steps = location
    path = "/".join(str(step).replace("~", "~0").replace("/", "~1") for step in steps)
    return f"/{path}" if kind == "body" else f"{kind}/{path}"


def _detail(error: dict[str, Any]) -> str:
    """What was expected, and what was seen where that is short enough to be shown."""
    seen = error.get("input")
    shown = ascii(seen)[:80] if isinstance(seen, str | int | float | bool) or seen is None else ""
    missing = error.get("type") == "missing"
    return str(error["msg"]) + (f", got {shown}" if shown and not missing else "")


def _http_error(scope: Mapping[str, Any], error: HTTPException, headers: dict[str, str]) -> Problem:
    headers.update(error.headers or {})
    title = HTTPStatus(error.status_code).phrase
    detail = (
        error.detail
        if error.detail != title
        else f"{scope['method']} {scope['path']} is not served here; see /docs"
    )
    return Problem(title=title, status=error.status_code, detail=detail)


def _unexpected(scope: Mapping[str, Any], error: Exception) -> Problem:
    """Log what happened and where, but neither messages nor the path: they may hold ids of users."""
    route = getattr(scope.get("route"), "path_format", "(no route)")
    trace = "".join(_trace(error))
    logger.error("request %s, %s %s failed:\n%s", request_id.current(), scope["method"], route, trace)
    text = "an error nobody foresaw; its trace is in the log of the replica, under the request's id"
    return Problem(title="Internal error", status=500, detail=text)


def _trace(error: BaseException) -> Iterator[str]:
    """The kinds and places of an error and of what led to it, innermost cause first, without their messages."""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _trace(before)
        yield "which led to\n"
    yield from traceback.format_tb(error.__traceback__)
    yield f"{type(error).__module__}.{type(error).__qualname__}\n"
