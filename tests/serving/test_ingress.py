"""The middleware before Serve's own: what it says is what Serve understands."""

import asyncio

import pytest
from ray.serve._private.http_util import parse_disconnect_disabled_header, validate_http_proxy_callback_return
from ray.serve._private.utils import call_function_from_import_path

from services.local_ray import _ENVIRONMENT
from serving.ingress import IMPORT_PATH


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
