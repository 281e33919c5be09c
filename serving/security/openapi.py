"""Writes into the OpenAPI document how to authenticate, and the errors that any operation may answer with."""

from typing import Any

from fastapi import FastAPI

from serving.models import Problem
from serving.problems import describe
from serving.security.guard import Guard
from serving.security.routes import NEEDS

SCHEMES: dict[str, Any] = {
    "ApiKey": {
        "type": "apiKey",
        "in": "header",
        "name": "X-API-Key",
        "description": "`headrace keys new` makes one",
    },
    "Bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "an API key, or a JSON Web Token of the identity provider in the settings",
    },
}

_PUBLIC = (500,)
_GUARDED = (401, 403, 429, 500, 503)
_WITH_BODY = (400, 413, 422)


def document(app: FastAPI, guard: Guard) -> None:
    """Make `app.openapi()` tell of security schemes, scopes and the answers of the envelope."""
    plain = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = plain()
            _define(schema.setdefault("components", {}))
            for operations in schema["paths"].values():
                for operation in operations.values():
                    _complete(operation, guard)
        assert app.openapi_schema is not None
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way FastAPI documents


def _define(components: dict[str, Any]) -> None:
    """Add what the operations refer to, in place of FastAPI's own form of an error."""
    components["securitySchemes"] = SCHEMES
    problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas = components.setdefault("schemas", {})
    schemas |= problem.pop("$defs", {}) | {"Problem": problem}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)


def _complete(operation: dict[str, Any], guard: Guard) -> None:
    scope = operation.get(NEEDS)
    statuses = _PUBLIC if scope is None else _GUARDED
    if scope is not None:
        alternatives: list[dict[str, list[str]]] = [{name: [scope]} for name in SCHEMES]
        operation["security"] = alternatives + ([{}] if scope in guard.anonymous.scopes else [])
    if "requestBody" in operation:
        statuses = (*statuses, *_WITH_BODY)
    if "parameters" in operation:
        statuses = (*statuses, 422)
    operation["responses"] |= {str(status): answer for status, answer in describe(*statuses).items()}
