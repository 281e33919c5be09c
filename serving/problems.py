"""Errors as RFC 9457 problem details, `application/problem+json`, for every way a request can fail."""

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.describe import describe_erasures
from serving.errors import GoneError, InvalidRequestError, ServingError, UnauthorizedError
from serving.models import Problem

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


def describe(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Say in the OpenAPI document which problems a route may answer with."""
    schema = {"$ref": "#/components/schemas/Problem"}
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": schema}}}
        for status in statuses
    }


def install(app: FastAPI) -> None:
    """Answer every error of `app` with problem details."""
    app.add_exception_handler(ServingError, _serving_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _unexpected)


def problem(request: Request, problem: Problem, headers: dict[str, str] | None = None) -> Response:
    """Render problem details; `instance` is the path of the request."""
    body = problem.model_copy(update={"instance": request.url.path}).model_dump_json(exclude_none=True)
    return Response(body, problem.status, headers, media_type=MEDIA_TYPE)


async def _serving_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServingError)
    errors = None
    if isinstance(error, InvalidRequestError):
        errors = [{"pointer": error.pointer, "detail": error.detail}]
    headers = (
        {"WWW-Authenticate": 'ApiKey header="X-API-Key"'} if isinstance(error, UnauthorizedError) else None
    )
    erasures = describe_erasures(error.proofs) if isinstance(error, GoneError) else None
    found = Problem(
        title=error.title, status=error.status, detail=str(error), errors=errors, erasures=erasures
    )
    return problem(request, found, headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [{"pointer": _pointer(e["loc"]), "detail": _detail(e)} for e in error.errors()[:20]]
    text = "; ".join(f"{e['pointer']}: {e['detail']}" for e in errors[:3])
    return problem(request, Problem(title="Invalid request", status=422, detail=text, errors=errors))


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


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    title = HTTPStatus(error.status_code).phrase
    detail = (
        error.detail
        if error.detail != title
        else f"{request.method} {request.url.path} is not served here; see /docs"
    )
    return problem(
        request, Problem(title=title, status=error.status_code, detail=detail), dict(error.headers or {})
    )


async def _unexpected(request: Request, error: Exception) -> Response:
    logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
    text = "an error nobody foresaw; its trace is in the log of the replica"
    return problem(request, Problem(title="Internal error", status=500, detail=text))
