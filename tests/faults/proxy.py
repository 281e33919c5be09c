"""A TCP proxy between clients and the broker, in which the network goes wrong on demand.

The broker advertises the proxy's port, so every client of it comes through here. One fault at a time:

- cut      all connections are reset; new ones are taken at once
- slow     every piece waits, and passes at a limited rate
- stall    connections stay open and nothing passes
- refuse   all connections are reset, and nobody listens
"""

import asyncio
import contextlib
import socket
import threading
from collections import Counter
from collections.abc import Coroutine
from types import TracebackType
from typing import Any

_PIECE = 64 * 1024
_CALL_TIMEOUT_S = 10.0

KINDS = ("cut", "slow", "stall", "refuse")


class Proxy:
    """Forwards a loopback port to another one, from an event loop in a thread of its own; a context manager.

    Args:
        port: where clients come.
        target: the broker's port.
    """

    def __init__(self, port: int, target: int) -> None:
        self.port, self._target = port, target
        self.faults: Counter[str] = Counter()
        self.connections: Counter[str] = Counter()  # that a fault of each kind met
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._open: dict[asyncio.StreamWriter, asyncio.StreamWriter] = {}  # client's side: broker's side
        self._passing = asyncio.Event()
        self._delay_s, self._bytes_per_s = 0.0, 0.0
        self._healing: asyncio.TimerHandle | None = None
        self._healed = threading.Event()
        self._healed.set()

    def __enter__(self) -> "Proxy":
        self._thread.start()
        self._call(self._listen())
        self._passing.set()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call(self._end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CALL_TIMEOUT_S)
        self._loop.close()

    def begin(
        self, kind: str, lasts_s: float, *, delay_s: float = 0.1, bytes_per_s: float = 200_000.0
    ) -> None:
        """Start a fault, which ends by itself; one that is under way ends now.

        Args:
            kind: one of KINDS.
            lasts_s: for how long; a cut is over at once.
            delay_s, bytes_per_s: of a slow network, per piece of at most 64 KiB and connection.
        """
        self._healed.clear()
        self._call(self._begin(kind, lasts_s, delay_s, bytes_per_s))

    def wait_healed(self, timeout_s: float) -> None:
        """Wait until everything passes again.

        Raises:
            TimeoutError: the fault lasts longer.
        """
        if not self._healed.wait(timeout_s):
            raise TimeoutError(f"the network did not heal within {timeout_s:.0f} s")

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_CALL_TIMEOUT_S)

    async def _begin(self, kind: str, lasts_s: float, delay_s: float, bytes_per_s: float) -> None:
        if self._healing is not None:
            self._healing.cancel()
            await self._heal()
        self.faults[kind] += 1
        self.connections[kind] += len(self._open)
        if kind == "slow":
            self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        elif kind == "stall":
            self._passing.clear()
        else:
            if kind == "refuse":
                self._stop_listening()
            self._reset()
        self._healing = self._loop.call_later(
            0.0 if kind == "cut" else lasts_s, lambda: self._loop.create_task(self._heal())
        )

    async def _heal(self) -> None:
        self._healing = None
        self._delay_s = self._bytes_per_s = 0.0
        self._passing.set()
        await self._listen()
        self._healed.set()

    async def _end(self) -> None:
        self._stop_listening()
        self._passing.set()
        self._reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=_CALL_TIMEOUT_S / 2)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, reuse_address=True)

    def _stop_listening(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _reset(self) -> None:
        for client, broker in list(self._open.items()):
            client.transport.abort()
            broker.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            broker_reader, broker = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.transport.abort()
            return
        self._open[writer] = broker
        for side in (
            writer,
            broker,
        ):  # as between Kafka's own clients and brokers: small requests are not held back
            side.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.gather(self._forward(reader, broker), self._forward(broker_reader, writer))
        finally:
            self._open.pop(writer, None)
            writer.transport.abort()
            broker.transport.abort()

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):  # reset by either end, or by a fault: the other end is told below
            while piece := await reader.read(_PIECE):
                if self._bytes_per_s:
                    await asyncio.sleep(self._delay_s + len(piece) / self._bytes_per_s)
                await self._passing.wait()
                writer.write(piece)
                await writer.drain()
        writer.close()
