"""Secured Kafka: what gets in gets in over TLS and SASL, what does not is told at start, and no secret ever shows."""

import base64
import http.server
import json
import logging
import pickle
import ssl
import threading
import time
import traceback
import urllib.parse
import uuid
from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from streaming.broker import EmbeddedBroker, free_port
from streaming.brokers.security import secret, token_source
from streaming.config import KafkaSettings
from streaming.errors import BrokerError
from streaming.kafka import check_connection, ensure_topics, make_producer
from streaming.source import make_source
from tests.streaming.certificates import Authority
from tests.streaming.sasl_front import SaslFront
from tests.streaming.test_source import CLIENTS

SECRET = "hunter2-very-secret"
BY_PASSWORD = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pki")
    authority, other = Authority(folder, "authority"), Authority(folder, "other")
    return SimpleNamespace(folder=folder, authority=authority, other=other, server=authority.issue("server"))


@pytest.fixture(scope="module")
def tls_broker(pki):
    cert, key = pki.server
    with EmbeddedBroker(cert=cert, key=key) as running:
        yield running.bootstrap_servers


@pytest.fixture(scope="module")
def mtls_broker(pki):
    cert, key = pki.server
    with EmbeddedBroker(cert=cert, key=key, client_ca=pki.authority.cafile) as running:
        yield running.bootstrap_servers


@pytest.fixture(scope="module")
def sasl_front(pki):
    """SASL over TLS in front of a real broker."""
    cert, key = pki.server
    mechanisms = (*BY_PASSWORD, "OAUTHBEARER")
    tokens = ("token-1", "token-2")
    with (
        SaslFront(mechanisms, "alice", SECRET, tokens, cert, key) as front,
        EmbeddedBroker(advertised_port=front.port) as broker,
    ):
        front.target_port = broker.port
        yield front


@pytest.fixture(params=CLIENTS)
def client(request):
    return request.param


def tls(pki, bootstrap, **changes) -> KafkaSettings:
    values = {"security_protocol": "SSL", "ssl_cafile": pki.authority.cafile, "request_timeout_s": 3}
    return KafkaSettings(bootstrap_servers=bootstrap, **values | changes)


def sasl(pki, front, mechanism, **changes) -> KafkaSettings:
    values = {"security_protocol": "SASL_SSL", "sasl_mechanism": mechanism}
    if mechanism != "OAUTHBEARER":
        values |= {"sasl_username": "alice"}
        values |= {} if "sasl_password_file" in changes else {"sasl_password": SECRET}
    return tls(pki, f"127.0.0.1:{front.port}", **values | changes)


def goes_round(settings: KafkaSettings) -> str:
    """A record can be produced and comes back; the topic it went through."""
    topic = f"secured-{uuid.uuid4().hex}"
    settings = settings.model_copy(update={"items_topic": f"{topic}-i", "dead_letter_topic": f"{topic}-d"})
    ensure_topics(settings, [topic])
    producer = make_producer(settings)
    producer.send(topic, b"hello", partition=0).get(10)
    producer.close()
    source = make_source(settings, max_records=10)
    try:
        source.assign({(topic, 0): 0})
        deadline, seen = time.monotonic() + 15, []
        while not seen and time.monotonic() < deadline:
            seen = [value for batch in source.poll(0.5) for value in batch.values]
        assert seen == [b"hello"]
    finally:
        source.close()
    return topic


def complaint(settings: KafkaSettings) -> str:
    """What the start says; it must say it soon and without a secret."""
    began = time.monotonic()
    with pytest.raises(BrokerError) as caught:
        ensure_topics(settings)
    assert time.monotonic() - began < 4 * settings.request_timeout_s, "a wrong setting must not take minutes"
    assert SECRET not in "".join(traceback.format_exception(caught.value)) + repr(caught.value)
    return str(caught.value)


# --- TLS -------------------------------------------------------------------------------------------------------


def test_records_go_round_over_tls(pki, tls_broker, client):
    goes_round(tls(pki, tls_broker, client=client))


@pytest.mark.parametrize("encrypted", [False, True])
def test_records_go_round_with_a_client_certificate(pki, mtls_broker, client, encrypted, tmp_path):
    cert, key = pki.authority.issue(f"client-{encrypted}", password=SECRET if encrypted else None)
    password = tmp_path / "password"
    password.write_text(f"{SECRET}\n")
    extra = {"ssl_key_password_file": password} if encrypted else {}
    goes_round(tls(pki, mtls_broker, client=client, ssl_certfile=cert, ssl_keyfile=key, **extra))


def test_an_authority_that_did_not_sign_the_broker_is_told(pki, tls_broker):
    settings = tls(pki, tls_broker, ssl_cafile=pki.other.cafile)
    assert "TLS handshake" in complaint(settings)
    assert f"kafka.ssl_cafile={str(pki.other.cafile)!r}" in complaint(settings)


def test_a_certificate_for_another_host_is_told_unless_that_is_allowed(pki, client):
    cert, key = pki.authority.issue("elsewhere", host="kafka.example")
    with EmbeddedBroker(cert=cert, key=key) as running:
        settings = tls(pki, running.bootstrap_servers, client=client)
        topic = goes_round(settings.model_copy(update={"ssl_check_hostname": False}))
        assert "ssl_check_hostname" in complaint(settings)
        with pytest.raises(BrokerError, match="ssl_check_hostname"):
            make_source(settings, 10).ends([(topic, 0)])


def test_a_missing_client_certificate_is_told(pki, mtls_broker):
    assert "kafka.ssl_certfile" in complaint(tls(pki, mtls_broker))


def test_plaintext_against_tls_is_told(pki, tls_broker):
    told = complaint(KafkaSettings(bootstrap_servers=tls_broker, request_timeout_s=3))
    assert "security_protocol=PLAINTEXT" in told
    assert "TLS" in told


def test_tls_against_plaintext_is_told(pki, broker):
    told = complaint(tls(pki, broker))
    assert "TLS handshake" in told
    assert "security_protocol=SSL" in told


@pytest.mark.parametrize(
    ("setting", "content", "problem"),
    [
        ("ssl_cafile", None, "No such file"),
        ("ssl_cafile", "nonsense", "expected PEM certificates"),
        ("ssl_keyfile", None, "No such file"),
        ("ssl_certfile", "nonsense", "cannot be used"),
        ("ssl_key_password_file", None, "No such file"),
        ("ssl_key_password_file", "", "is empty"),
        ("ssl_key_password_file", f"not {SECRET}", "ssl_key_password"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(pki, tls_broker, tmp_path, setting, content, problem):
    cert, key = pki.authority.issue("named", password=SECRET)
    password, wrong = tmp_path / "password", tmp_path / "wrong"
    password.write_text(SECRET)
    if content is not None:
        wrong.write_text(content)
    files = {"ssl_certfile": cert, "ssl_keyfile": key, "ssl_key_password_file": password} | {setting: wrong}
    told = complaint(tls(pki, tls_broker, **files))
    assert f"kafka.{setting}" in told
    assert problem in told
    if "password" not in setting:
        assert str(wrong) in told


# --- SASL ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mechanism", BY_PASSWORD)
def test_records_go_round_with_a_password(pki, sasl_front, client, mechanism):
    goes_round(sasl(pki, sasl_front, mechanism, client=client))


def test_readers_ask_for_committed_records_only(pki, sasl_front, client):
    sasl_front.isolation_levels.clear()
    goes_round(sasl(pki, sasl_front, "PLAIN", client=client))
    assert sasl_front.isolation_levels == {1}


def test_a_password_may_be_in_a_file_and_loses_its_last_newline(pki, sasl_front, client, tmp_path):
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\r\n")
    goes_round(sasl(pki, sasl_front, "SCRAM-SHA-512", client=client, sasl_password_file=file))


@pytest.mark.parametrize("mechanism", BY_PASSWORD)
def test_a_wrong_password_is_told(pki, sasl_front, mechanism):
    told = complaint(sasl(pki, sasl_front, mechanism, sasl_password=f"not-{SECRET}"))
    assert "authentication failed" in told
    assert "kafka.sasl_username='alice', sasl_password" in told


def test_a_source_tells_of_a_wrong_password_too(pki, sasl_front, client):
    settings = sasl(pki, sasl_front, "SCRAM-SHA-256", sasl_password=f"not-{SECRET}", client=client)
    with pytest.raises(BrokerError, match=r"sasl_username='alice'") as caught:
        make_source(settings, 10).ends([("events", 0)])
    assert SECRET not in "".join(traceback.format_exception(caught.value))


def test_a_mechanism_that_is_not_offered_is_told_with_those_that_are(pki, broker):
    with SaslFront(("PLAIN",), "alice", SECRET) as front:
        front.target_port = int(broker.rpartition(":")[2])
        settings = KafkaSettings(
            bootstrap_servers=f"127.0.0.1:{front.port}",
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="SCRAM-SHA-256",
            sasl_username="alice",
            sasl_password=SECRET,
            request_timeout_s=3,
        )
        told = complaint(settings)
        assert "kafka.sasl_mechanism=SCRAM-SHA-256" in told
        assert "offers PLAIN" in told
        without = KafkaSettings(bootstrap_servers=f"127.0.0.1:{front.port}", request_timeout_s=3)
        assert "authentication (SASL_SSL, SASL_PLAINTEXT)" in complaint(without)


# --- bearer tokens ---------------------------------------------------------------------------------------------


@pytest.fixture
def endpoint():
    """A token endpoint; `answers` are given in turn, the last one for ever, `asked` is what came."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            asked.append((self.headers["Authorization"], {name: values[0] for name, values in form.items()}))
            status, body = answers.pop(0) if len(answers) > 1 else answers[0]
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body if isinstance(body, bytes) else json.dumps(body).encode())

        def log_message(self, *_):
            pass

    asked, answers = [], []
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_port}/token", asked=asked, answers=answers)
    server.shutdown()
    server.server_close()


def by_endpoint(endpoint) -> dict:
    return {
        "oauth_token_url": endpoint.url,
        "oauth_client_id": "headrace",
        "oauth_client_secret": SECRET,
        "oauth_scope": "kafka",
    }


def test_records_go_round_with_a_token_from_an_endpoint(pki, sasl_front, client, endpoint):
    endpoint.answers.append((200, {"access_token": "token-1", "expires_in": 300}))
    goes_round(sasl(pki, sasl_front, "OAUTHBEARER", client=client, **by_endpoint(endpoint)))
    basic = "Basic " + base64.b64encode(f"headrace:{SECRET}".encode()).decode()
    assert set(map(str, endpoint.asked)) == {
        str((basic, {"grant_type": "client_credentials", "scope": "kafka"}))
    }


def test_records_go_round_with_a_token_from_a_file(pki, sasl_front, client, tmp_path):
    file = tmp_path / "token"
    file.write_text("token-2\n")
    goes_round(sasl(pki, sasl_front, "OAUTHBEARER", client=client, oauth_token_file=file))


def test_a_token_is_kept_until_shortly_before_it_expires(pki, sasl_front, endpoint):
    endpoint.answers += [
        (200, {"access_token": "long", "expires_in": 3600}),
        (200, {"access_token": "short", "expires_in": 0}),
        (200, {"access_token": "next", "expires_in": 3600}),
    ]
    settings = sasl(pki, sasl_front, "OAUTHBEARER", **by_endpoint(endpoint))
    first, second = token_source(settings), token_source(settings)
    assert [first.token() for _ in range(3)] == ["long"] * 3
    assert first.expires_at() == pytest.approx(time.time() + 3600, abs=60)
    assert [second.token() for _ in range(3)] == ["short", "next", "next"]
    assert len(endpoint.asked) == 3


def test_a_token_file_is_read_again_and_tells_when_its_token_expires(pki, sasl_front, tmp_path):
    file = tmp_path / "token"
    source = token_source(sasl(pki, sasl_front, "OAUTHBEARER", oauth_token_file=file))
    file.write_text("one\n")
    assert source.token() == "one"
    claims = base64.urlsafe_b64encode(json.dumps({"exp": time.time() + 1000}).encode()).decode().rstrip("=")
    file.write_text(f"header.{claims}.signature")
    assert source.token() == f"header.{claims}.signature"
    assert source.expires_at() == pytest.approx(time.time() + 1000, abs=60)


def test_a_token_the_broker_does_not_accept_is_told(pki, sasl_front, tmp_path):
    file = tmp_path / "token"
    file.write_text(SECRET)
    told = complaint(sasl(pki, sasl_front, "OAUTHBEARER", oauth_token_file=file))
    assert "authentication failed" in told
    assert "kafka.oauth_token_file" in told


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (
            (401, {"error": "invalid_client", "error_description": SECRET}),
            "refused the client.*invalid_client",
        ),
        ((200, {"hello": SECRET}), "without an access_token"),
        ((200, SECRET.encode()), "without an access_token"),
        ((500, {}), "HTTP 500"),
    ],
)
def test_a_token_endpoint_that_gives_none_is_told(pki, sasl_front, endpoint, answer, problem):
    endpoint.answers.append(answer)
    with pytest.raises(BrokerError, match=f"kafka.oauth_token_url.*{problem}"):
        check_connection(sasl(pki, sasl_front, "OAUTHBEARER", **by_endpoint(endpoint)))
    assert SECRET not in complaint(sasl(pki, sasl_front, "OAUTHBEARER", **by_endpoint(endpoint)))


def test_a_token_endpoint_that_is_not_there_is_told(pki, sasl_front, endpoint):
    wrong = by_endpoint(endpoint) | {"oauth_token_url": f"http://127.0.0.1:{free_port()}/token"}
    assert "cannot be reached" in complaint(sasl(pki, sasl_front, "OAUTHBEARER", **wrong))


# --- the broker is not there -------------------------------------------------------------------------------------


def test_a_port_where_nobody_listens_is_told_within_the_time_out():
    settings = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_s=1)
    told = complaint(settings)
    assert "cannot connect to kafka.bootstrap_servers" in told
    assert "Connection refused" in told


def test_a_broker_that_comes_up_late_is_waited_for():
    port = free_port()
    running = EmbeddedBroker(port)
    starter = threading.Timer(1.0, running.start)
    starter.start()
    try:
        check_connection(KafkaSettings(bootstrap_servers=f"127.0.0.1:{port}", request_timeout_s=20))
    finally:
        starter.join()
        running.stop()


def test_an_address_without_a_port_is_told():
    assert "expected host:port, got 'kafka'" in complaint(KafkaSettings(bootstrap_servers="kafka"))


# --- settings ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"security_protocol": "SASL_SSL"}, "needs sasl_mechanism"),
        ({"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN"}, "needs sasl_username"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "sasl_username": "a"},
            "exactly one of sasl_password and sasl_password_file",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "PLAIN",
                "sasl_username": "a",
                "sasl_password": SECRET,
                "sasl_password_file": "p",
            },
            "exactly one of .* got sasl_password and sasl_password_file",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"},
            "exactly one of oauth_token_url and oauth_token_file",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "oauth_token_url": "https://x",
            },
            "needs oauth_client_id",
        ),
        ({"security_protocol": "SSL", "ssl_certfile": "c"}, "needs ssl_keyfile"),
        ({"security_protocol": "SSL", "ssl_key_password": SECRET}, "needs ssl_keyfile"),
        ({"ssl_cafile": "c"}, "ssl_cafile is set, but security_protocol=PLAINTEXT makes no use of it"),
        ({"sasl_mechanism": "PLAIN"}, "sasl_mechanism is set, but"),
        ({"sasl_mechanism": SECRET}, "sasl_mechanism"),
        ({"security_protocol": "SSL", "oauth_token_url": f"ftp://{SECRET}"}, "oauth_token_url"),
    ],
)
def test_incomplete_or_idle_security_settings_are_refused_by_name(values, named):
    with pytest.raises(ValidationError, match=named) as caught:
        KafkaSettings(**values)
    assert SECRET not in str(caught.value)


def test_secrets_are_in_no_repr_dump_or_log(pki, sasl_front, caplog, client):
    caplog.set_level(logging.DEBUG)
    settings = sasl(pki, sasl_front, "PLAIN", client=client)
    goes_round(settings)
    complaint(sasl(pki, sasl_front, "PLAIN", sasl_password=f"not-{SECRET}"))
    assert caplog.records, "the clients log at this level; if they did not, this test would show nothing"
    assert SECRET not in caplog.text
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()
    assert secret(pickle.loads(pickle.dumps(settings)), "sasl_password") == SECRET  # actors need it


def test_a_private_key_never_makes_openssl_ask_the_terminal(pki, tls_broker):
    cert, key = pki.authority.issue("asks", password=SECRET)
    told = complaint(tls(pki, tls_broker, ssl_certfile=cert, ssl_keyfile=key))
    assert "ssl_key_password" in told


def test_the_embedded_broker_speaks_nothing_below_tls_1_2(pki, tls_broker):
    context = ssl.create_default_context(cafile=str(pki.authority.cafile))
    host, _, port = tls_broker.rpartition(":")
    import socket

    with (
        socket.create_connection((host, int(port)), 5) as plain,
        context.wrap_socket(plain, server_hostname=host) as it,
    ):
        assert it.version() in ("TLSv1.2", "TLSv1.3")
