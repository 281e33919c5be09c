"""TLS in front of a plaintext TCP port, in a thread: the embedded broker's binary refuses its own TLS options.

(Tansu 0.6.0 declares `--cert` and `--key` as excluding each other, and serves plaintext with only one of them.)
"""

import asyncio
import contextlib
import ssl
import threading
from pathlib import Path

from streaming.errors import BrokerError

_START_TIMEOUT_S = 10.0


class TlsFront:
    """Accepts TLS on one loopback port and passes the bytes to another.

    Args:
        port: the port that speaks TLS.
        target_port: the plaintext port behind it.
        cert: PEM file of the server's certificate (chain).
        key: PEM file of its private key.
        client_ca: PEM file; clients must then show a certificate that it signed.
    """

    def __init__(
        self, port: int, target_port: int, cert: Path, key: Path, client_ca: Path | None = None
    ) -> None:
        self._port, self._target_port = port, target_port
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(cert, key)
        if client_ca is not None:
            self._context.load_verify_locations(client_ca)
            self._context.verify_mode = ssl.CERT_REQUIRED
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="tls-front", daemon=True)

    def start(self) -> None:
        """Begin to accept.

        Raises:
            BrokerError: the port is taken.
        """
        self._thread.start()
        if not self._ready.wait(_START_TIMEOUT_S) or self._error is not None:
            raise BrokerError(f"cannot accept TLS on 127.0.0.1:{self._port}: {self._error}")

    def stop(self) -> None:
        """Close the port and all connections."""
        if self._thread.is_alive():
            with contextlib.suppress(RuntimeError):  # the loop has just ended by itself
                self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(_START_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except OSError as error:
            self._error = error
        finally:
            self._ready.set()
            self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self._port, ssl=self._context)
        self._loop.set_exception_handler(
            lambda loop, context: None
        )  # a failed handshake is the client's to report
        self._ready.set()
        await self._stop.wait()
        server.close()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            behind_reader, behind_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_pass(reader, behind_writer), _pass(behind_reader, writer))


async def _pass(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    except (OSError, ssl.SSLError):
        return  # either side may leave at any time
    finally:
        writer.close()
