"""Any ASGI application on loopback, and a small one with a route for each scope."""

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn
from fastapi import APIRouter, FastAPI, Request
from pydantic import BaseModel

from serving.application import Application
from serving.envelope import install
from serving.security.caller import caller_of
from serving.security.config import ApiKey, SecuritySettings
from serving.security.guard import Guard
from serving.security.keys import make_key
from serving.security.routes import PUBLIC, GuardedRoute, require
from streaming.broker import free_port


@contextmanager
def served(app: Any) -> Iterator[httpx.Client]:
    """Serve an app for the length of a `with` block."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    up = threading.Event()
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets)
        up.set()

    server.startup = announced  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert up.wait(20)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)


class Note(BaseModel):
    text: str


def small_app(settings: SecuritySettings, guard: Guard | None = None) -> Application:
    """One route per scope, one that is open, one that waits for `app.state.go`, one that breaks."""
    app = FastAPI()
    app.state.go, app.state.waiting = asyncio.Event(), threading.Semaphore(0)
    router = APIRouter(route_class=GuardedRoute)

    @router.get("/v1/read/{name:path}", openapi_extra=require("read"))
    async def read(name: str, request: Request) -> dict[str, str]:
        caller = caller_of(request.scope)
        return {"name": name, "id": caller.id, "kind": caller.kind}

    @router.post("/v1/write", openapi_extra=require("write"))
    async def write(body: Note) -> Note:
        return body

    @router.post("/v1/admin", openapi_extra=require("admin"))
    async def admin() -> str:
        return "done"

    @router.get("/v1/slow", openapi_extra=require("read"))
    async def slow() -> str:
        app.state.loop = asyncio.get_running_loop()
        app.state.waiting.release()
        await app.state.go.wait()
        return "done"

    @router.get("/v1/broken/{name}", openapi_extra=require("read"))
    async def broken(name: str) -> None:
        try:
            raise KeyError(name)
        except KeyError as error:
            raise RuntimeError(f"no {name}") from error

    @router.get("/healthz", openapi_extra=PUBLIC)
    async def health() -> str:
        return "ok"

    app.include_router(router)
    whole = Application(app)
    install(whole, guard or Guard(settings), settings)
    return whole


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """The problem details of an answer, held against what every problem has."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == response.request.url.path
    assert body["request_id"] == response.headers["x-request-id"]
    return body


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def key(key_id: str, *scopes: str, **more: Any) -> tuple[str, ApiKey]:
    """A key and its entry in the settings."""
    name, text, hashed = make_key(key_id)
    return text, ApiKey(id=name, hash=hashed, scopes=scopes, **more)  # type: ignore[arg-type]


def statuses(client: httpx.Client, **headers: str) -> tuple[int, int, int]:
    """What a caller with these headers gets for reading, writing and administering."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    return (
        client.get("/v1/read/anna", headers=sent).status_code,
        client.post("/v1/write", json={"text": "x"}, headers=sent).status_code,
        client.post("/v1/admin", headers=sent).status_code,
    )
