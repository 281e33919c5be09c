"""Finds out why a broker cannot be used, in the order in which it can go wrong: reach it, TLS, SASL.

A Kafka client retries until its time-out whatever the cause, and then says that it timed out. This opens one
connection of its own and speaks the first words of the protocol on it (https://kafka.apache.org/protocol), so
that a wrong setting is named at once. A broker that only cannot be reached yet is waited for.
"""

import contextlib
import socket
import ssl
import struct
import time

from kafka.net.sasl import get_sasl_mechanism

from streaming.brokers.security import credentials_advice, kafka_python_security, scrubbed, tls_context
from streaming.config import KafkaSettings
from streaming.errors import BrokerError

_TRY_S = 5.0  # longest one attempt at one server takes
_RETRY_S = 0.25  # pause between two rounds over servers that cannot be reached

_METADATA, _SASL_HANDSHAKE, _API_VERSIONS, _SASL_AUTHENTICATE = 3, 17, 18, 36  # api keys
_TLS_ALERT, _TLS_HANDSHAKE = 0x15, 0x16  # first byte of a TLS record; a Kafka answer begins with its size


class _NotReachableError(Exception):
    """No connection; it may come up yet."""


def probe(settings: KafkaSettings) -> None:
    """Return once one of the bootstrap servers speaks Kafka with us under these settings.

    Raises:
        BrokerError: none can be reached within `request_timeout_s`, or one refuses how we speak to it.
    """
    context = tls_context(settings)
    servers = [_address(settings, server) for server in settings.bootstrap_servers.split(",")]
    deadline = time.monotonic() + settings.request_timeout_s
    while True:
        failures = []
        for host, port in servers:
            try:
                _converse(settings, context, host, port, max(0.1, min(_TRY_S, deadline - time.monotonic())))
            except _NotReachableError as error:
                failures.append(f"{host}:{port}: {error}")
            else:
                return
        if time.monotonic() + _RETRY_S >= deadline:
            raise BrokerError(
                f"cannot connect to kafka.bootstrap_servers={settings.bootstrap_servers!r} within "
                f"{settings.request_timeout_s:g} s ({'; '.join(failures)}); check that setting, "
                "and that the broker runs"
            )
        time.sleep(_RETRY_S)  # a broker that is starting refuses connections at once


def diagnosis(settings: KafkaSettings) -> str:
    """What is wrong with the connection, to be added to a message about a time-out; empty if nothing is."""
    hurried = settings.model_copy(update={"request_timeout_s": min(_TRY_S, settings.request_timeout_s)})
    try:
        probe(hurried)
    except BrokerError as why:
        return f"; {why}"
    return ""


def _address(settings: KafkaSettings, server: str) -> tuple[str, int]:
    host, _, port = server.strip().rpartition(":")
    if not host or not port.isdecimal():
        raise BrokerError(
            f"kafka.bootstrap_servers={settings.bootstrap_servers!r}: expected host:port, got {server.strip()!r}"
        )
    return host.strip("[]"), int(port)


def _converse(
    settings: KafkaSettings, context: ssl.SSLContext | None, host: str, port: int, timeout_s: float
) -> None:
    try:
        plain = socket.create_connection((host, port), timeout_s)
    except OSError as error:
        raise _NotReachableError(error.strerror or str(error)) from error
    with contextlib.closing(plain):
        connection = plain if context is None else _handshake(settings, context, plain, host, port)
        with contextlib.closing(connection):
            _speak(settings, connection, f"{host}:{port}")


def _handshake(
    settings: KafkaSettings, context: ssl.SSLContext, plain: socket.socket, host: str, port: int
) -> ssl.SSLSocket:
    told = f"TLS handshake with {host}:{port} failed: "
    protocol = settings.security_protocol
    try:
        return context.wrap_socket(plain, server_hostname=host)
    except ssl.SSLCertVerificationError as error:
        hint = (
            "expected a certificate for this host name; check kafka.bootstrap_servers or kafka.ssl_check_hostname"
            if "match" in error.verify_message
            else f"check kafka.ssl_cafile={str(settings.ssl_cafile or 'the system authorities')!r}"
        )
        raise BrokerError(f"{told}{error.verify_message}; {hint}") from error
    except TimeoutError as error:
        raise BrokerError(
            f"{told}no answer; this is how a listener without TLS looks: check kafka.security_protocol={protocol}"
        ) from error
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or str(error)
        raise BrokerError(
            f"{told}{reason}; check that the listener speaks TLS (kafka.security_protocol={protocol}) and whether "
            "it wants a client certificate (kafka.ssl_certfile, ssl_keyfile)"
        ) from error


def _speak(settings: KafkaSettings, connection: socket.socket, where: str) -> None:
    """Ask for the versions, and for what the broker only tells those it lets in."""
    _ask(settings, connection, where, _API_VERSIONS, 0, b"")
    if settings.uses_sasl:
        _agree_on_mechanism(settings, connection, where)
        _authenticate(settings, connection, where)
    _ask(settings, connection, where, _METADATA, 1, struct.pack(">i", 0))


def _agree_on_mechanism(settings: KafkaSettings, connection: socket.socket, where: str) -> None:
    wanted = settings.sasl_mechanism or ""
    answer = _ask(settings, connection, where, _SASL_HANDSHAKE, 1, _string(wanted))
    code, offered = struct.unpack_from(">h", answer)[0], _strings(answer[2:])
    if code != 0 or wanted not in offered:
        raise BrokerError(
            f"{where} refused kafka.sasl_mechanism={wanted} (error code {code}); it offers "
            f"{', '.join(offered) or 'none'}: choose one of those, or a listener with SASL"
        )


def _authenticate(settings: KafkaSettings, connection: socket.socket, where: str) -> None:
    """The exchange of SaslAuthenticate requests, with kafka-python's own mechanisms."""
    mechanism = get_sasl_mechanism(settings.sasl_mechanism)(host=where, **kafka_python_security(settings))
    refused = f"{where}: authentication failed"
    while not mechanism.is_done():
        said = mechanism.auth_bytes()
        answer = _ask(settings, connection, where, _SASL_AUTHENTICATE, 0, struct.pack(">i", len(said)) + said)
        code, length = struct.unpack_from(">hh", answer)
        told, rest = answer[4 : 4 + max(0, length)].decode(errors="replace"), answer[4 + max(0, length) :]
        if code != 0:
            raise BrokerError(
                f"{refused} (error code {code}: {scrubbed(settings, told)}); {credentials_advice(settings)}"
            )
        try:
            mechanism.receive(rest[4:])
        except ValueError:  # SCRAM: the broker could not prove that it knows the password either
            break
    if not mechanism.is_authenticated():
        raise BrokerError(f"{refused}; {credentials_advice(settings)}")


def _ask(
    settings: KafkaSettings, connection: socket.socket, where: str, api: int, version: int, body: bytes
) -> bytes:
    """Send one request, return the body of its answer."""
    message = struct.pack(">hhi", api, version, api) + _string("headrace-probe") + body
    protocol = settings.security_protocol
    refused = f"{where} does not answer as a Kafka broker does under kafka.security_protocol={protocol}"
    try:
        connection.sendall(struct.pack(">i", len(message)) + message)
        size = _receive(connection, 4)
        if settings.uses_tls is False and size[:1] and size[0] in (_TLS_ALERT, _TLS_HANDSHAKE):
            raise BrokerError(f"{refused}: it speaks TLS; set that to SSL or SASL_SSL")
        answer = _receive(connection, struct.unpack(">i", size)[0])
    except TimeoutError as error:
        raise BrokerError(f"{refused}: no answer within {_TRY_S:g} s; is it a Kafka listener?") from error
    except ssl.SSLError as error:  # TLS 1.3: a client's certificate is only judged after the handshake
        raise BrokerError(
            f"TLS handshake with {where} failed: {error.reason}; check kafka.ssl_certfile and ssl_keyfile"
        ) from error
    except (OSError, EOFError) as error:
        wants = [] if settings.uses_sasl else ["authentication (SASL_SSL, SASL_PLAINTEXT)"]
        wants += ["a client certificate (kafka.ssl_certfile, ssl_keyfile)"] if settings.uses_tls else []
        wants += [] if settings.uses_tls else ["TLS (SSL, SASL_SSL)"]
        raise BrokerError(
            f"{refused}: it closed the connection, as one does that expects {' or '.join(wants)}"
        ) from error
    return answer[4:]


def _receive(connection: socket.socket, count: int) -> bytes:
    if not 0 <= count <= 1 << 20:
        raise EOFError
    received = b""
    while len(received) < count:
        piece = connection.recv(count - len(received))
        if not piece:
            raise EOFError
        received += piece
    return received


def _string(text: str) -> bytes:
    """A STRING of the Kafka protocol."""
    data = text.encode()
    return struct.pack(">h", len(data)) + data


def _strings(data: bytes) -> list[str]:
    """An ARRAY of STRING of the Kafka protocol."""
    count, at, found = struct.unpack_from(">i", data)[0], 4, []
    for _ in range(count):
        length = struct.unpack_from(">h", data, at)[0]
        found.append(data[at + 2 : at + 2 + length].decode(errors="replace"))
        at += 2 + length
    return found
