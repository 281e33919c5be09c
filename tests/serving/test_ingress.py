"""The middleware before Serve's own: what it says is what Serve understands, and answers stay what they are."""

import asyncio
import socket

import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header, validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path

from services.local_ray import _ENVIRONMENT
from serving.ingress import IMPORT_PATH, Ingress
from tests.serving.live import served


@pytest.mark.parametrize(("method", "unwatched"), [("GET", True), ("POST", False), ("DELETE", False)])
def test_requests_that_only_read_are_not_watched(method, unwatched):
    [made] = validate_http_proxy_callback_return(call_function_from_import_path(IMPORT_PATH))
    seen = []

    async def app(scope, receive, send):
        seen.append(parse_disconnect_disabled_header(dict(scope["headers"])))

    asyncio.run(made.cls(app)({"type": "http", "method": method, "headers": []}, None, None))
    assert seen == [unwatched]


def test_a_local_ray_is_told_of_it():
    assert _ENVIRONMENT["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == IMPORT_PATH


async def answers(scope, receive, send):
    """`/N/...`: that many parts; `/sized` names its length, `/empty` has no body, `/broken` none after its head."""
    if scope["type"] != "http":
        return
    kind = scope["path"].strip("/")
    if kind == "empty":
        await send({"type": "http.response.start", "status": 304, "headers": [(b"etag", b'"x"')]})
        await send({"type": "http.response.body"})
        return
    headers = [(b"content-length", b"4")] if kind == "sized" else []
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    if kind == "broken":
        raise RuntimeError("no body")
    parts = 1 if kind == "sized" else int(kind)
    for part in range(parts):
        await send({"type": "http.response.body", "body": b"part", "more_body": part < parts - 1})


def test_answers_of_every_shape_arrive_as_without_it():
    with served(Ingress(answers)) as client:
        for _ in range(2):  # on a connection that is kept
            assert client.get("/sized").content == b"part"
            assert client.get("/3").content == b"part" * 3
            assert client.head("/sized").content == b""
            assert client.get("/empty").status_code == 304
        assert client.get("/sized", headers={"connection": "close"}).content == b"part"
        assert client.get("/broken").status_code == 500


def test_head_and_body_are_one_packet():
    with (
        served(Ingress(answers)) as client,
        socket.create_connection((client.base_url.host, client.base_url.port), timeout=10) as connection,
    ):
        for _ in range(20):
            connection.sendall(b"GET /sized HTTP/1.1\r\nHost: here\r\n\r\n")
            assert connection.recv(65_536).endswith(b"\r\n\r\npart")
