"""What surrounds every request, over real HTTP."""

import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from serving import request_id
from serving.security.config import SecuritySettings
from tests.serving.live import problem, served, small_app

MAX = 4096


@pytest.fixture(scope="module")
def client() -> Iterator[httpx.Client]:
    with served(small_app(SecuritySettings(body_max_bytes=MAX))) as client:
        yield client


def test_each_answer_has_an_id_of_its_own(client):
    first, second = (client.get("/v1/read/anna").headers["x-request-id"] for _ in range(2))
    assert first != second
    assert len(first) == 24


@pytest.mark.parametrize("name", ["a", "0af7651916cd43dd8448eb211c80319c", "svc:7/1.2_x-y+z=@", "x" * 128])
def test_a_sane_id_is_taken_over(client, name):
    assert client.get("/v1/read/anna", headers={"X-Request-ID": name}).headers["x-request-id"] == name


@pytest.mark.parametrize("name", ["", "two words", "x" * 129, "zoë".encode(), "a,b", '"', "%0a"])
def test_another_is_replaced(client, name):
    answer = client.get("/v1/read/anna", headers={"X-Request-ID": name})
    assert len(answer.headers["x-request-id"]) == 24
    assert len(answer.headers.get_list("x-request-id")) == 1


def test_problems_name_the_request(client):
    body = problem(client.get("/nowhere", headers={"X-Request-ID": "mine"}), 404)
    assert body["request_id"] == "mine"


@pytest.mark.parametrize(
    ("method", "path", "content", "status"),
    [
        ("GET", "/nowhere", None, 404),
        ("GET", "/v1/nowhere", None, 404),
        ("DELETE", "/v1/write", None, 405),
        ("POST", "/v1/write", b"{not json", 422),
        ("POST", "/v1/write", b'{"text": 5}', 422),
        ("POST", "/v1/write", b'{"text": "\xff"}', 422),
        ("POST", "/v1/write", b"[" * 4000, 422),
        ("POST", "/v1/write", b"", 422),
        ("GET", "/v1/broken/x", None, 500),
    ],
)
def test_every_error_is_a_problem(client, method, path, content, status):
    headers = {"Content-Type": "application/json"} if content is not None else {}
    answer = client.request(method, path, content=content, headers=headers)
    problem(answer, status)
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"text": }', "expected value at line 1 column 10"),
        (b'{"text": "x", "more": NaN}', "column 23"),
        (rb'{"text": "x", "more": "\ud800!"}', "hex escape"),
        (rb'{"text": "x", "\udfff": 1}', "surrogate"),
    ],
)
def test_a_body_that_is_no_json_is_told_where(client, body, said):
    answer = client.post("/v1/write", content=body, headers={"Content-Type": "application/json"})
    [error] = problem(answer, 422)["errors"]
    assert error["pointer"] == ""
    assert said in error["detail"]


def test_a_wrong_method_is_told_the_right_one(client):
    assert client.delete("/v1/write").headers["allow"] == "POST"


def test_an_unforeseen_error_tells_the_caller_its_id_and_the_log_its_place_but_no_user(client, caplog):
    with caplog.at_level(logging.ERROR):
        body = problem(client.get("/v1/broken/anna", headers={"X-Request-ID": "r-17"}), 500)
    assert "anna" not in body["detail"]
    [record] = caplog.records
    text = record.getMessage()
    assert "anna" not in text
    for part in ("r-17", "GET /v1/broken/{name}", "in broken", "builtins.KeyError", "builtins.RuntimeError"):
        assert part in text


def test_log_lines_name_the_request(capsys):
    logger = logging.getLogger("tests.serving.named")
    for _ in range(2):  # to configure twice doubles nothing
        request_id.configure_logging(logger)
    request_id.begin(b"r-18")
    logger.warning("something")
    assert capsys.readouterr().err.count("[r-18] something") == 1


# --- size ------------------------------------------------------------------------------------------------


def note(size: int) -> bytes:
    """A valid body of `size` bytes."""
    return b'{"text": "' + b"x" * (size - 12) + b'"}'


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_up_to_the_limit_is_read(client, chunked):
    assert post(client, note(MAX), chunked).status_code == 200
    body = problem(post(client, note(MAX + 1), chunked), 413)
    assert str(MAX) in body["detail"]
    assert "serving.security.body_max_bytes" in body["detail"]


def post(client: httpx.Client, body: bytes, chunked: bool) -> httpx.Response:
    content = (body[start : start + 1000] for start in range(0, len(body), 1000)) if chunked else body
    return client.post("/v1/write", content=content, headers={"Content-Type": "application/json"})


def test_a_large_body_is_refused_before_it_is_read(client):
    """The declared length is enough: the body never comes, and the answer does not wait for it."""
    import socket

    host, port = client.base_url.host, client.base_url.port
    with socket.create_connection((host, port), timeout=10) as connection:
        connection.sendall(
            b"POST /v1/write HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 999999\r\n\r\n"
        )
        assert connection.recv(65536).startswith(b"HTTP/1.1 413 ")


def test_the_limit_is_one_of_each_body(client):
    for _ in range(5):
        assert post(client, note(MAX), chunked=True).status_code == 200


# --- overload --------------------------------------------------------------------------------------------


def test_what_is_more_than_a_replica_takes_on_is_told_to_come_back():
    app = small_app(SecuritySettings(in_flight_max=2))
    with served(app) as client, ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(client.get, "/v1/slow") for _ in range(2)]
        for _ in busy:
            assert app.inside.state.waiting.acquire(timeout=10)
        answer = client.get("/v1/read/anna")
        assert "2 requests" in problem(answer, 503)["detail"]
        assert answer.headers["retry-after"] == "1"
        assert client.get("/healthz").status_code == 200  # a probe must not take the replica for dead
        app.inside.state.loop.call_soon_threadsafe(app.inside.state.go.set)
        assert [request.result().status_code for request in busy] == [200, 200]
        assert client.get("/v1/read/anna").status_code == 200


def test_errors_give_their_place_back():
    with served(small_app(SecuritySettings(in_flight_max=1))) as client:
        for _ in range(3):
            problem(client.get("/v1/broken/x"), 500)
            problem(client.post("/v1/write", json={}), 422)
        assert client.get("/v1/read/anna").status_code == 200


# --- headers ---------------------------------------------------------------------------------------------


def test_large_answers_are_compressed_for_those_who_take_it(client):
    name = "x" * 3000
    plain = client.get(f"/v1/read/{name}", headers={"Accept-Encoding": "identity"})
    assert "content-encoding" not in plain.headers
    assert plain.headers["vary"] == "Accept-Encoding"
    packed = client.get(f"/v1/read/{name}", headers={"Accept-Encoding": "gzip"})
    assert (packed.headers["content-encoding"], packed.headers["vary"]) == ("gzip", "Accept-Encoding")
    assert int(packed.headers["content-length"]) < 500
    assert packed.json() == plain.json()
    small = client.get("/v1/read/anna", headers={"Accept-Encoding": "gzip"})
    assert "content-encoding" not in small.headers


def test_compression_can_be_off():
    with served(small_app(SecuritySettings(gzip_min_bytes=None))) as client:
        answer = client.get("/v1/read/" + "x" * 3000, headers={"Accept-Encoding": "gzip"})
        assert "content-encoding" not in answer.headers
        assert "vary" not in answer.headers


def test_answers_are_the_callers_alone(client):
    headers = client.get("/v1/read/anna").headers
    assert headers["cache-control"] == "private, no-cache"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


def test_pages_of_other_sites_may_not_call_unless_the_settings_name_them(client):
    shop, other = {"Origin": "https://shop.example"}, {"Origin": "https://other.example"}
    ask = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "x-api-key"}
    assert "access-control-allow-origin" not in client.get("/v1/read/a", headers=shop).headers
    assert client.options("/v1/read/a", headers=shop | ask).status_code == 405
    named = SecuritySettings(cors_origins=("https://shop.example",), anonymous_scopes=())
    with served(small_app(named)) as cors:
        preflight = cors.options("/v1/read/a", headers=shop | ask)
        assert preflight.headers["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-credentials" not in preflight.headers
        refused = cors.get("/v1/read/a", headers=shop)
        problem(refused, 403)  # and the page may read why
        assert refused.headers["access-control-allow-origin"] == "https://shop.example"
        assert "access-control-allow-origin" not in cors.options("/v1/read/a", headers=other | ask).headers
