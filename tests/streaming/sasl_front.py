"""SASL in front of the embedded broker, which cannot be given users: verifies for real, then passes frames through.

Sources: RFC 4616 (PLAIN), RFC 5802 and 7677 (SCRAM), RFC 7628 (OAUTHBEARER), https://kafka.apache.org/protocol.
"""

import base64
import hashlib
import hmac
import os
import socket
import socketserver
import ssl
import struct
import threading
from pathlib import Path

_FETCH, _HANDSHAKE, _API_VERSIONS, _AUTHENTICATE = 1, 17, 18, 36
_REFUSED = 58  # SASL_AUTHENTICATION_FAILED
_HASHES = {"SCRAM-SHA-256": "sha256", "SCRAM-SHA-512": "sha512"}


class SaslFront(socketserver.ThreadingTCPServer):
    """A context manager that listens on a free loopback port; `target_port` is to be set before the first client.

    Attributes:
        isolation_levels: those that Fetch requests asked for (1: read_committed).
    """

    daemon_threads = True
    allow_reuse_address = True

    def __init__(
        self,
        mechanisms: tuple[str, ...],
        user: str = "",
        password: str = "",
        tokens: tuple[str, ...] = (),
        cert: Path | None = None,
        key: Path | None = None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Connection)
        self.mechanisms, self.user, self.password, self.tokens = mechanisms, user, password, tokens
        self.port, self.target_port = self.server_address[1], 0
        self.isolation_levels: set[int] = set()
        self.tls = None
        if cert is not None and key is not None:
            self.tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            self.tls.load_cert_chain(cert, key)

    def __enter__(self) -> "SaslFront":
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()

    def handle_error(self, request: object, client_address: object) -> None:
        """Connections end as clients please."""

    def exchange(self, mechanism: str):
        """The server's side: takes what the client says, gives (answer, whether that was the last), or refuses."""
        if mechanism == "PLAIN":
            return self._plain
        if mechanism == "OAUTHBEARER":
            return self._bearer
        return _Scram(self.user, self.password, _HASHES[mechanism])

    def _plain(self, message: bytes) -> tuple[bytes, bool]:
        _, user, password = message.split(b"\0")
        if (user.decode(), password.decode()) != (self.user, self.password):
            raise PermissionError
        return b"", True

    def _bearer(self, message: bytes) -> tuple[bytes, bool]:
        if message == b"\x01":  # the client has read why
            raise PermissionError
        token = message.split(b"auth=Bearer ")[1].split(b"\x01")[0].decode()
        return (b"", True) if token in self.tokens else (b'{"status":"invalid_token"}', False)


class _Scram:
    def __init__(self, user: str, password: str, algorithm: str) -> None:
        self._user, self._password, self._hash = user, password, algorithm
        self._first: tuple[str, str] | None = None

    def __call__(self, message: bytes) -> tuple[bytes, bool]:
        text = message.decode()
        if self._first is None:
            bare = text.removeprefix("n,,")
            fields = dict(part.split("=", 1) for part in bare.split(","))
            if fields["n"] != self._user:
                raise PermissionError
            self._salt = os.urandom(16)
            nonce = fields["r"] + "server"
            answer = f"r={nonce},s={base64.b64encode(self._salt).decode()},i=4096"
            self._first = bare, answer
            return answer.encode(), False
        without_proof, proof = text.rsplit(",p=", 1)
        signed = ",".join([*self._first, without_proof]).encode()
        salted = hashlib.pbkdf2_hmac(self._hash, self._password.encode(), self._salt, 4096)
        client_key = self._mac(salted, b"Client Key")
        signature = self._mac(hashlib.new(self._hash, client_key).digest(), signed)
        expected = bytes(a ^ b for a, b in zip(client_key, signature, strict=True))
        if not hmac.compare_digest(expected, base64.b64decode(proof)):
            raise PermissionError
        return b"v=" + base64.b64encode(self._mac(self._mac(salted, b"Server Key"), signed)), True

    def _mac(self, key: bytes, message: bytes) -> bytes:
        return hmac.digest(key, message, self._hash)


class _Connection(socketserver.BaseRequestHandler):
    server: SaslFront

    def handle(self) -> None:
        client = (
            self.server.tls.wrap_socket(self.request, server_side=True) if self.server.tls else self.request
        )
        with client, socket.create_connection(("127.0.0.1", self.server.target_port)) as broker:
            if self._authenticate(client, broker):
                threading.Thread(target=_pump, args=(broker, client), daemon=True).start()
                while frame := _frame(client):
                    self._look_at(frame)
                    _send(broker, frame)

    def _authenticate(self, client: socket.socket, broker: socket.socket) -> bool:
        exchange = None
        while frame := _frame(client):
            api, version, correlation, body = _request(frame)
            if api == _API_VERSIONS:
                _send(broker, frame)
                _send(client, _frame(broker))
            elif api == _HANDSHAKE:
                wanted = body[2:].decode()
                known = wanted in self.server.mechanisms
                exchange = self.server.exchange(wanted) if known else None
                offered = b"".join(struct.pack(">h", len(m)) + m.encode() for m in self.server.mechanisms)
                error = 0 if known else 33
                _send(client, struct.pack(">ihi", correlation, error, len(self.server.mechanisms)) + offered)
            elif api == _AUTHENTICATE and exchange is not None:
                message = _compact_bytes(body[1:]) if version >= 2 else body[4:]
                try:
                    answer, last = exchange(message)
                except PermissionError:
                    _send(client, _authenticated(correlation, version, _REFUSED, b""))
                    return False
                _send(client, _authenticated(correlation, version, 0, answer))
                if last:
                    return True
            else:
                return False  # as Kafka does with a request of somebody it does not know
        return False

    def _look_at(self, frame: bytes) -> None:
        api, version, _, body = _request(frame)
        if api == _FETCH:
            body = body[1 if version >= 12 else 0 :]  # no tagged fields in the header
            self.server.isolation_levels.add(body[12 if version >= 15 else 16])


def _request(frame: bytes) -> tuple[int, int, int, bytes]:
    api, version, correlation, length = struct.unpack_from(">hhih", frame)
    return api, version, correlation, frame[10 + max(0, length) :]


def _compact_bytes(data: bytes) -> bytes:
    length = size = 0
    while size == 0 or data[size - 1] >= 0x80:
        length |= (data[size] & 0x7F) << (7 * size)
        size += 1
    return data[size : size + length - 1]


def _compact(data: bytes) -> bytes:
    length, out = len(data) + 1, b""
    while length > 0x7F:
        out, length = out + bytes([length & 0x7F | 0x80]), length >> 7
    return out + bytes([length]) + data


def _authenticated(correlation: int, version: int, error: int, answer: bytes) -> bytes:
    told = b"Authentication failed"
    if version >= 2:
        return struct.pack(">ibh", correlation, 0, error) + _compact(told) + _compact(answer) + bytes(9)
    body = struct.pack(">ihh", correlation, error, len(told)) + told + struct.pack(">i", len(answer)) + answer
    return body + (bytes(8) if version == 1 else b"")


def _frame(connection: socket.socket) -> bytes:
    """One length-prefixed message; empty when the other side has left."""
    return _exactly(connection, struct.unpack(">i", size)[0]) if (size := _exactly(connection, 4)) else b""


def _exactly(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        piece = connection.recv(min(1 << 20, count - len(data)))
        if not piece:
            return b""
        data += piece
    return bytes(data)


def _send(connection: socket.socket, message: bytes) -> None:
    connection.sendall(struct.pack(">i", len(message)) + message)


def _pump(broker: socket.socket, client: socket.socket) -> None:
    try:
        while frame := _frame(broker):
            _send(client, frame)
    except OSError:
        return  # the client has left
