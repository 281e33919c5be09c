"""Tokens of an identity provider, over real HTTP: its keys come from a server on loopback."""

import base64
import hmac
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from serving.security.config import JwtSettings, SecuritySettings
from serving.security.guard import Guard
from tests.serving.live import Clock, key, problem, served, small_app, statuses

ISSUER, AUDIENCE = "https://idp.example/", "headrace"
RSA_KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
WEAK_RSA = rsa.generate_private_key(public_exponent=65537, key_size=1024)
EC_KEY = ec.generate_private_key(ec.SECP256R1())


def jwk(private: Any, kid: str | None, **more: str) -> dict[str, Any]:
    algorithm: Any = ECAlgorithm if isinstance(private, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    named = {} if kid is None else {"kid": kid}
    return algorithm.to_jwk(private.public_key(), as_dict=True) | named | more


def token(private: Any = RSA_KEY, algorithm: str = "RS256", kid: str | None = "k1", **claims: Any) -> str:
    now = time.time()
    held = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": "svc",
        "exp": now + 300,
        "iat": now,
        "scope": "read",
    } | claims
    named = {} if kid is None else {"kid": kid}
    claims = {name: value for name, value in held.items() if value is not None}
    return jwt.encode(claims, private, algorithm=algorithm, headers=named)


class Provider:
    """An identity provider's keys on loopback, and how often they were asked for."""

    def __init__(self, *keys: dict[str, Any]) -> None:
        self.keys, self.asked, self.broken = list(keys), 0, False
        self.gate = threading.Event()
        self.gate.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                provider.gate.wait(10)
                body = json.dumps({"keys": provider.keys}).encode()
                self.send_response(500 if provider.broken else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/keys"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def settings(self, **more: Any) -> SecuritySettings:
        return SecuritySettings(jwt=JwtSettings(jwks_url=self.url, issuer=ISSUER, audience=AUDIENCE, **more))


@contextmanager
def provided() -> Iterator[Provider]:
    provider = Provider(jwk(RSA_KEY, "k1", use="sig"), jwk(EC_KEY, "k2", alg="ES256"), jwk(WEAK_RSA, "weak"))
    yield provider
    provider.server.shutdown()
    provider.server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    with provided() as provider:
        yield provider


@contextmanager
def trusting(
    settings: SecuritySettings, clock: Callable[[], float] = time.monotonic
) -> Iterator[httpx.Client]:
    with served(small_app(settings, Guard(settings, clock=clock))) as client:
        yield client


def ask(client: httpx.Client, text: str) -> httpx.Response:
    return client.get("/v1/read/a", headers={"Authorization": f"Bearer {text}"})


def test_a_token_does_what_its_scopes_say(provider):
    with trusting(provider.settings()) as client:
        assert ask(client, token()).json() == {"name": "a", "id": "svc", "kind": "token"}
        assert statuses(client) == (401, 401, 401)
        for scope, expected in (
            ("read", (200, 403, 403)),
            ("openid write read", (200, 200, 403)),
            (["admin"], (200, 200, 200)),
            ("readwrite", (403, 403, 403)),
            (None, (403, 403, 403)),
            ({"read": 1}, (403, 403, 403)),
        ):
            assert statuses(client, Authorization=f"Bearer {token(scope=scope)}") == expected
        assert ask(client, token(EC_KEY, "ES256", "k2")).status_code == 200
        assert ask(client, token(aud=["other", AUDIENCE], sub=None, azp="web")).json()["id"] == "web"
        assert provider.asked == 1


@pytest.mark.parametrize(
    ("claim", "prefix", "claims"),
    [
        ("permissions", "", {"permissions": ["read"]}),
        ("scope", "headrace:", {"scope": "headrace:read other:write"}),
        ("realm_access.roles", "", {"realm_access": {"roles": ["read"]}}),
        ("https://idp.example/roles", "", {"https://idp.example/roles": ["read"]}),
    ],
)
def test_scopes_are_found_where_the_settings_say(provider, claim, prefix, claims):
    with trusting(provider.settings(scope_claim=claim, scope_prefix=prefix)) as client:
        text = token(**({"scope": None} | claims))
        assert statuses(client, Authorization=f"Bearer {text}") == (200, 403, 403)


def unsigned() -> str:
    return jwt.encode(
        {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "scope": "admin"}, None, "none"
    )


def signed_with_the_public_key() -> str:
    """The classic: an HMAC whose secret is the public key."""
    public = RSA_KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    head = b64(json.dumps({"alg": "HS256", "kid": "k1", "typ": "JWT"}).encode())
    claims = {"iss": ISSUER, "aud": AUDIENCE, "exp": time.time() + 300, "scope": "admin"}
    signed = f"{head}.{b64(json.dumps(claims).encode())}"
    return f"{signed}.{b64(hmac.digest(public, signed.encode(), 'sha256'))}"


def b64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def with_the_signature_of_another() -> str:
    return ".".join([*token().split(".")[:2], token(sub="other").split(".")[2]])


@pytest.fixture(scope="module")
def strict() -> Iterator[httpx.Client]:
    with provided() as provider, trusting(provider.settings()) as client:
        yield client


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (unsigned, "algorithm"),
        (signed_with_the_public_key, "algorithm"),
        (lambda: token(algorithm="RS512"), "algorithm"),
        (lambda: token(OTHER_RSA), "signature"),
        (lambda: token(kid="nobody"), "does not publish"),
        (lambda: token(kid=None), "does not publish"),
        (lambda: token(WEAK_RSA, kid="weak"), "too short"),
        (lambda: token(kid="k2"), "algorithm is not the one"),
        (lambda: token(EC_KEY, "ES256", "k1"), "does not fit"),
        (lambda: token(exp=time.time() - 31), "expired"),
        (lambda: token(exp=None), "lacks"),
        (lambda: token(nbf=time.time() + 60), "not valid yet"),
        (lambda: token(aud="somebody"), "aud"),
        (lambda: token(aud=None), "lacks"),
        (lambda: token(iss="https://evil.example/"), "iss"),
        (lambda: token(iss=None), "lacks"),
        (with_the_signature_of_another, "signature"),
        (lambda: "a.b.c", "malformed"),
        (lambda: "..", "malformed"),
        (lambda: token(extra="x" * 9000), "malformed"),
    ],
)
@pytest.mark.filterwarnings("ignore:The RSA key is 1024 bits")
def test_a_token_that_is_not_right_is_refused_and_told_why_but_not_shown(strict, text, said):
    sent = text()
    body = problem(ask(strict, sent), 401)
    assert said in body["detail"]
    assert sent not in json.dumps(body)
    assert "svc" not in json.dumps(body)


def test_clocks_may_differ_a_little(provider):
    with trusting(provider.settings(leeway_s=30)) as client:
        assert ask(client, token(exp=time.time() - 20)).status_code == 200
        assert ask(client, token(nbf=time.time() + 20)).status_code == 200


def test_new_keys_are_fetched_when_they_are_named_but_not_more_often_than_said(provider):
    clock = Clock()
    with trusting(provider.settings(refresh_min_s=10), clock) as client:
        assert ask(client, token()).status_code == 200
        provider.keys.append(jwk(OTHER_RSA, "k3"))
        assert [ask(client, token(OTHER_RSA, kid="k3")).status_code for _ in range(3)] == [401] * 3
        assert provider.asked == 1  # the first fetch is not long enough ago
        clock.now += 10
        assert [ask(client, token(OTHER_RSA, kid="k3")).status_code for _ in range(3)] == [200] * 3
        assert [ask(client, token(kid=f"k{n}")).status_code for n in range(9, 19)] == [401] * 10
        assert provider.asked == 2


def test_a_key_that_is_published_no_more_counts_no_more(provider):
    clock = Clock()
    with trusting(provider.settings(refresh_s=300), clock) as client:
        assert ask(client, token()).status_code == 200
        provider.keys[:] = [jwk(EC_KEY, "k2")]
        clock.now += 301
        ask(client, token(EC_KEY, "ES256", "k2"))  # due: fetched beside this request
        clock.now += 10
        assert until(lambda: ask(client, token()).status_code == 401)


def until(check: Callable[[], bool], timeout_s: float = 10.0) -> bool:
    deadline = time.monotonic() + timeout_s
    while not check() and time.monotonic() < deadline:
        time.sleep(0.01)
    return check()


def test_while_the_provider_is_away_known_keys_go_on_for_a_day_and_unknown_ones_are_to_wait(provider):
    clock = Clock()
    with trusting(provider.settings(), clock) as client:
        assert ask(client, token()).status_code == 200
        provider.broken = True
        clock.now += 400
        assert ask(client, token()).status_code == 200
        assert until(lambda: provider.asked == 2)
        clock.now += 10
        answer = ask(client, token(OTHER_RSA, kid="k3"))
        problem(answer, 503)
        assert answer.headers["retry-after"] == "10"
        clock.now += 86400
        problem(ask(client, token()), 503)
        provider.broken = False
        clock.now += 10
        assert ask(client, token()).status_code == 200


def test_no_request_waits_for_the_provider_but_those_that_need_it(provider):
    """One fetch for all who wait, and the event loop goes on beside it."""
    text, entry = key("shop", "read")
    settings = provider.settings().model_copy(update={"keys": (entry,)})
    with trusting(settings) as client, ThreadPoolExecutor(4) as pool:
        provider.gate.clear()
        waiting = [pool.submit(ask, client, token()) for _ in range(4)]
        assert until(lambda: provider.asked == 1)
        assert ask(client, text).status_code == 200  # a key, while the provider keeps silent
        assert not any(request.done() for request in waiting)
        provider.gate.set()
        assert [request.result().status_code for request in waiting] == [200] * 4
        assert provider.asked == 1


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"keys": []}', '{"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k1"}]}'],
)
def test_a_file_that_holds_no_keys_is_no_reason_to_let_anybody_in(tmp_path, content, caplog):
    path = tmp_path / "jwks.json"
    path.write_text(content)
    jwt_settings = JwtSettings(jwks_file=path, issuer=ISSUER, audience=AUDIENCE)
    with trusting(SecuritySettings(jwt=jwt_settings)) as client:
        problem(ask(client, token()), 503)
    assert str(path) in caplog.text


def test_keys_come_from_a_file_too_and_one_key_needs_no_name(tmp_path: Path):
    path = tmp_path / "jwks.json"
    path.write_text(json.dumps({"keys": [jwk(RSA_KEY, None), jwk(EC_KEY, "enc", use="enc")]}))
    jwt_settings = JwtSettings(jwks_file=path, issuer=ISSUER, audience=AUDIENCE)
    with trusting(SecuritySettings(jwt=jwt_settings)) as client:
        assert ask(client, token(kid=None)).status_code == 200


def test_a_subject_may_ask_as_often_as_its_rate(provider):
    with trusting(provider.settings(rate_per_s=1, burst=1), Clock()) as client:
        assert [ask(client, token()).status_code for _ in range(2)] == [200, 429]
        assert ask(client, token(sub="other")).status_code == 200
