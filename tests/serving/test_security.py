"""Who may do what, and how often, over real HTTP: keys, scopes and rates. Tokens: test_tokens.py."""

import hashlib
import hmac
import json
import re
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError
from typer.testing import CliRunner

from services.commands.keys import app as keys_command
from serving.security.config import SecuritySettings
from serving.security.guard import Guard, client_address
from serving.security.keys import KeyRing, make_key
from serving.security.rate import Buckets
from serving.security.routes import GuardedRoute
from tests.serving.live import Clock, key, problem, served, small_app, statuses

ADMIN = "an-admin-key-of-sixteen-or-more"


@contextmanager
def api(guard: Guard | None = None, **settings: Any) -> Iterator[httpx.Client]:
    with served(small_app(SecuritySettings(**settings), guard)) as client:
        yield client


# --- scopes ----------------------------------------------------------------------------------------------


def test_on_loopback_without_any_key_one_may_read_and_write_but_not_administer():
    with api() as client:
        assert statuses(client) == (200, 200, 403)
        assert "headrace keys new" in problem(client.post("/v1/admin"), 403)["detail"]


def test_with_keys_nothing_goes_without_one():
    with api(keys=[key("a", "read")[1]]) as client:
        assert statuses(client) == (401, 401, 401)
        answer = client.get("/v1/read/anna")
        assert "X-API-Key" in problem(answer, 401)["detail"]
        assert "Bearer" in answer.headers["www-authenticate"]
        assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    ("scopes", "expected"),
    [
        (("read",), (200, 403, 403)),
        (("write",), (403, 200, 403)),
        (("read", "write"), (200, 200, 403)),
        (("admin",), (200, 200, 200)),
    ],
)
def test_a_key_does_what_its_scopes_say(scopes, expected):
    text, entry = key("shop", *scopes)
    with api(keys=[entry]) as client:
        assert statuses(client, X_API_Key=text) == expected
        assert statuses(client, Authorization=f"Bearer {text}") == expected
        assert statuses(client, Authorization=f"bearer  {text}") == expected


def test_the_caller_is_known_to_the_route():
    text, entry = key("shop", "read")
    with api(keys=[entry], anonymous_scopes=["read"]) as client:
        assert client.get("/v1/read/a", headers={"X-API-Key": text}).json() == {
            "name": "a", "id": "shop", "kind": "key",
        }  # fmt: skip
        assert client.get("/v1/read/a").json()["kind"] == "anonymous"


def test_wrong_credentials_are_refused_even_where_none_are_needed():
    text, entry = key("shop", "read")
    with api(keys=[entry], anonymous_scopes=["read", "write"]) as client:
        assert statuses(client) == (200, 200, 403)
        for wrong in (text[:-1], text + "x", "hr_shop_", "hr_other_" + text[8:], "x", "_", "hr__", "é" * 9):
            answer = client.get("/v1/read/anna", headers={"X-API-Key": wrong.encode()})
            assert text not in json.dumps(problem(answer, 401))
        basic = {"Authorization": "Basic YTpi"}  # a gateway's, not ours
        assert client.get("/v1/read/anna", headers=basic).status_code == 200


def test_who_may_not_is_refused_before_the_body_is_looked_at():
    text, entry = key("shop", "read")
    with api(keys=[entry]) as client:
        for headers, status in (({}, 401), ({"X-API-Key": text}, 403)):
            answer = client.post("/v1/write", content=b"{not json", headers=headers)
            problem(answer, status)


@pytest.mark.parametrize(
    ("admin_open", "anonymous", "with_key"),
    [(False, (200, 200, 401), (200, 200, 200)), (True, (200, 200, 401), (200, 200, 200))],
)
def test_the_admin_key_of_the_settings_is_an_admin_key(admin_open, anonymous, with_key):
    settings = SecuritySettings()
    guard = Guard(settings, admin_api_key=SecretStr(ADMIN), admin_open=admin_open)
    with served(small_app(settings, guard)) as client:
        assert statuses(client) == anonymous
        assert statuses(client, X_API_Key=ADMIN) == with_key
        assert statuses(client, X_API_Key=ADMIN[:-1]) == (401, 401, 401)


def test_admin_open_opens_only_where_nobody_holds_a_key():
    settings = SecuritySettings()
    with served(small_app(settings, Guard(settings, admin_open=True))) as client:
        assert statuses(client) == (200, 200, 200)
    closed = SecuritySettings(keys=[key("root", "admin")[1]], anonymous_scopes=["read"])
    with served(small_app(closed, Guard(closed, admin_open=True))) as client:
        assert statuses(client) == (200, 401, 401)


def test_a_path_that_is_not_open_needs_credentials_though_it_is_no_route_of_ours():
    text, entry = key("shop", "read")
    with api(keys=[entry], open_paths=["/healthz"]) as client:
        problem(client.get("/docs"), 401)
        problem(client.get("/nowhere"), 401)
        problem(client.get("/nowhere", headers={"X-API-Key": text}), 404)
        assert client.get("/docs", headers={"X-API-Key": text}).status_code == 200


def test_a_route_that_names_no_scope_is_not_made():
    router = APIRouter(route_class=GuardedRoute)
    with pytest.raises(TypeError, match=r"/v1/forgotten: expected openapi_extra=require"):
        router.get("/v1/forgotten")(lambda: None)


def test_the_document_says_how_to_authenticate():
    with api(keys=[key("a", "read")[1]], anonymous_scopes=["read"]) as client:
        document = client.get("/openapi.json").json()
    assert set(document["components"]["securitySchemes"]) == {"ApiKey", "Bearer"}
    read, write = document["paths"]["/v1/read/{name}"]["get"], document["paths"]["/v1/write"]["post"]
    assert read["security"] == [{"ApiKey": ["read"]}, {"Bearer": ["read"]}, {}]
    assert write["security"] == [{"ApiKey": ["write"]}, {"Bearer": ["write"]}]
    assert {"401", "403", "429", "500", "503"} <= set(read["responses"])
    assert {"400", "401", "403", "413", "422", "429", "500", "503"} <= set(write["responses"])
    assert "security" not in document["paths"]["/healthz"]["get"]


def test_the_document_knows_errors_as_problems_only():
    with api() as client:
        document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas
    assert {"Problem", "Erasure"} <= set(schemas)
    for answers in (op["responses"] for path in document["paths"].values() for op in path.values()):
        for status, answer in answers.items():
            if status >= "400":
                assert list(answer["content"]) == ["application/problem+json"]


# --- safe by default -------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_what_only_this_machine_reaches_is_open(host):
    assert SecuritySettings().anonymous_on(host) == {"read", "write"}


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "example.org", "localhost.example.org"])
def test_what_others_reach_needs_a_decision(host):
    with pytest.raises(ValueError, match=f"host={re.escape(host)} .*security.anonymous_scopes"):
        SecuritySettings().anonymous_on(host)
    with pytest.raises(ValueError, match="anonymous_scopes"):
        Guard(SecuritySettings(), host, admin_api_key=SecretStr(ADMIN))
    assert SecuritySettings(anonymous_scopes=["read"]).anonymous_on(host) == {"read"}
    assert SecuritySettings(anonymous_scopes=[]).anonymous_on(host) == set()
    assert SecuritySettings(keys=[key("a", "read")[1]]).anonymous_on(host) == set()


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"keys": [{"id": "A b", "hash": "sha256:" + "0" * 64, "scopes": ["read"]}]}, "keys.0.id"),
        ({"keys": [{"id": "a", "hash": "secret", "scopes": ["read"]}]}, "keys.0.hash"),
        ({"keys": [{"id": "a", "hash": "sha256:" + "0" * 64, "scopes": []}]}, "keys.0.scopes"),
        ({"keys": [{"id": "a", "hash": "sha256:" + "0" * 64, "scopes": ["root"]}]}, "keys.0.scopes.0"),
        ({"keys": [{"id": "a", "hash": "sha256:" + "0" * 64, "scopes": ["read"]}] * 2}, "different ids, got a"),
        ({"anonymous_scopes": ["all"]}, "anonymous_scopes.0"),
        ({"open_paths": ["/v1/events"]}, "outside /v1"),
        ({"open_paths": ["/"]}, "open_paths"),
        ({"cors_origins": ["shop.example"]}, "cors_origins"),
        ({"cors_origins": ["https://shop.example/"]}, "cors_origins"),
        ({"jwt": {"jwks_url": "http://idp.example/keys", "issuer": "i", "audience": "a"}}, "https"),
        ({"jwt": {"jwks_url": "https://idp.example/keys", "issuer": "i"}}, "audience is missing"),
        ({"jwt": {"jwks_url": "https://idp.example/keys", "audience": "a"}}, "issuer is missing"),
        ({"jwt": {"issuer": "i"}}, "neither jwks_url nor jwks_file"),
        ({"jwt": {"jwks_url": "https://x/k", "jwks_file": "k", "issuer": "i", "audience": "a"}}, "got both"),
        ({"jwt": {"algorithms": ["HS256"]}}, "jwt.algorithms.0"),
        ({"jwt": {"algorithms": ["none"]}}, "jwt.algorithms.0"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(values, said):
    with pytest.raises(ValidationError, match=re.escape(said)):
        SecuritySettings(**values)


# --- keys ------------------------------------------------------------------------------------------------


def test_keys_are_long_random_and_known_by_their_hash_only():
    name, text, hashed = make_key("shop")
    assert name == "shop"
    assert re.fullmatch("hr_shop_[A-Za-z0-9_-]{43}", text)  # 256 bits
    assert hashed == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert make_key("shop")[1] != text
    with pytest.raises(ValueError, match="1 to 32 characters"):
        make_key("a_b")


@given(
    st.lists(st.from_regex("[a-z0-9-]{1,32}", fullmatch=True), min_size=1, max_size=4, unique=True),
    st.binary(),
)
def test_a_ring_knows_its_keys_and_nothing_else(names, noise):
    made = [key(name, "read") for name in names]
    ring = KeyRing([entry for _, entry in made], ADMIN)
    for text, entry in made:
        assert ring.find(text.encode()) is entry
        assert ring.find(text.encode() + b"x") is None
    assert ring.find(ADMIN.encode()) is KeyRing.ADMIN
    assert ring.find(noise) is None


@pytest.mark.parametrize("admin_key", [None, ADMIN])
def test_keys_are_compared_in_constant_time_whatever_is_sent(monkeypatch, admin_key):
    """The same number of comparisons, of whole digests, for right, nearly right and unknown keys."""
    text, entry = key("shop", "read")
    ring = KeyRing([entry], admin_key)
    compared: list[tuple[int, int]] = []

    def watched(one: bytes, other: bytes) -> bool:
        compared.append((len(one), len(other)))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", watched)
    for sent in (text, text[:-1], "hr_other_x", "", "x" * 9999, ADMIN):
        compared.clear()
        ring.find(sent.encode())
        assert compared == [(32, 32)] * 2


def test_the_command_prints_a_key_and_the_entry_that_accepts_it():
    done = CliRunner().invoke(keys_command, ["new", "--scopes", "read, write", "--id", "shop"])
    assert done.exit_code == 0
    text, entry = done.stdout.split("\n\n", 1)
    settings = tomllib.loads(entry)["serving"]["security"]
    with api(**settings) as client:
        assert statuses(client, X_API_Key=text) == (200, 200, 403)
    again = CliRunner().invoke(keys_command, ["new", "--json"])
    assert json.loads(again.stdout)["scopes"] == ["read"]


@pytest.mark.parametrize(("arguments", "said"), [(["--scopes", "root"], "'root'"), (["--id", "A"], "--id")])
def test_the_command_refuses_what_could_not_be_used(arguments, said):
    done = CliRunner().invoke(keys_command, ["new", *arguments])
    assert done.exit_code == 2
    assert said in done.output


# --- rates -----------------------------------------------------------------------------------------------


def test_a_key_may_ask_as_often_as_its_rate():
    clock = Clock()
    (slow, first), (fast, second) = key("slow", "read", rate_per_s=0.5, burst=2), key("fast", "read")
    settings = SecuritySettings(keys=[first, second])
    with served(small_app(settings, Guard(settings, clock=clock))) as client:
        ask = lambda text: client.get("/v1/read/a", headers={"X-API-Key": text})  # noqa: E731
        assert [ask(slow).status_code for _ in range(3)] == [200, 200, 429]
        answer = ask(slow)
        assert "0.5 requests per second" in problem(answer, 429)["detail"]
        assert answer.headers["retry-after"] == "2"
        assert ask(fast).status_code == 200
        clock.now += 2
        assert [ask(slow).status_code for _ in range(2)] == [200, 429]


def test_callers_without_credentials_share_the_rate_of_their_address():
    settings = SecuritySettings(rate_per_s=1, burst=2, forwarded_hops=1)
    with served(small_app(settings, Guard(settings, clock=Clock()))) as client:
        ask = lambda address: client.get("/v1/read/a", headers={"X-Forwarded-For": address}).status_code  # noqa: E731
        assert [ask("10.0.0.1"), ask("9.9.9.9, 10.0.0.1"), ask("10.0.0.1")] == [200, 200, 429]
        assert ask("10.0.0.2") == 200
        assert client.get("/healthz", headers={"X-Forwarded-For": "10.0.0.1"}).status_code == 200


def test_who_guesses_keys_is_slowed_down():
    settings = SecuritySettings(rate_per_s=1, burst=2, keys=[key("a", "read")[1]])
    with served(small_app(settings, Guard(settings, clock=Clock()))) as client:
        got = [client.get("/v1/read/a", headers={"X-API-Key": f"hr_a_{n}"}).status_code for n in range(3)]
        assert got == [401, 401, 429]


@pytest.mark.parametrize(
    ("hops", "header", "address"),
    [
        (0, b"1.2.3.4", "10.0.0.1"),
        (1, None, "10.0.0.1"),
        (1, b"1.2.3.4", "1.2.3.4"),
        (1, b"6.6.6.6, 1.2.3.4", "1.2.3.4"),
        (2, b"6.6.6.6, 1.2.3.4, 5.6.7.8", "1.2.3.4"),
        (2, b"1.2.3.4", "1.2.3.4"),
        (1, b"2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        (1, b"x" * 999, "x" * 64),
    ],
)
def test_the_address_is_what_the_trusted_proxies_say(hops, header, address):
    headers = {} if header is None else {b"x-forwarded-for": header}
    assert client_address({"client": ("10.0.0.1", 5)}, headers, hops) == address


@given(
    st.floats(0.1, 50),
    st.integers(1, 20),
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 300).map(lambda n: n / 64)), max_size=60),
)
def test_a_bucket_is_a_token_bucket(rate, burst, steps):
    """Against the textbook: tokens drip in at the rate up to the burst, a request takes one."""
    clock = Clock()
    buckets, tokens, seen = Buckets(16, clock), {}, {}
    for caller, pause in steps:
        clock.now += pause
        held = min(burst, tokens.get(caller, burst) + (clock.now - seen.get(caller, clock.now)) * rate)
        seen[caller] = clock.now
        wait = buckets.take(caller, rate, burst)
        if abs(held - 1) > 1e-6:  # at the very edge rounding may decide either way
            assert (wait == 0) == (held >= 1)
        if wait > 0:
            assert wait == pytest.approx((1 - held) / rate, abs=1e-6)
        tokens[caller] = held - (wait == 0)


def test_no_more_buckets_are_kept_than_said_and_the_longest_unused_goes():
    buckets = Buckets(3, Clock())
    for caller in ("a", "b", "c", "a", "d"):
        buckets.take(caller, 1, 2)
    assert len(buckets) == 3
    assert buckets.take("a", 1, 2) > 0
    assert buckets.take("b", 1, 2) == 0
