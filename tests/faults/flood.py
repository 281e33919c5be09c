"""A producer that never stops, and what processes hold meanwhile."""

import threading
import time
from collections import Counter

import psutil
import ray

from services.settings import Settings
from streaming.kafka import make_producer
from tests.faults.run import BASE_MS

RECORD_BYTES, USERS, RECORDS_PER_WINDOW = 2000, 2000, 20_000
_SAMPLE_EVERY_S = 0.25


class Flood:
    """A producer that never stops: padded events of `USERS` users, at a steady rate, from a thread."""

    def __init__(self, settings: Settings, bytes_per_s: float) -> None:
        self._producer = make_producer(settings.kafka, linger_ms=20)
        self._topic, self._per_s = settings.streaming.events_topic, bytes_per_s / RECORD_BYTES
        self.sent = 0
        self.error: BaseException | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="flood", daemon=True)

    def send(self, count: int) -> None:
        """Send as many records."""
        for number in range(self.sent, self.sent + count):
            time_ms = BASE_MS + number * 600_000 // RECORDS_PER_WINDOW
            user = f"user-{number % USERS}"
            text = (
                f'{{"event_id":"e{number}","user_id":"{user}","item_id":"i{number % 977}","type":"view",'
                f'"timestamp":{time_ms},"context":{{"note":"'
            )
            value = text.ljust(RECORD_BYTES - 4, "x") + '"}}'
            self._producer.send(self._topic, value.encode(), key=user.encode())
        self.sent += count

    def flush(self) -> None:
        """Wait until the broker has it all."""
        self._producer.flush(timeout=60)

    def start(self) -> None:
        """Go on sending until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and wait until the broker has it all."""
        self._stop.set()
        self._thread.join(30)
        self.flush()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        """Give up the connection."""
        self._stop.set()
        self._producer.close(timeout=2)

    def _run(self) -> None:
        started, before = time.monotonic(), self.sent
        try:
            while not self._stop.wait(0.02):
                due = before + int((time.monotonic() - started) * self._per_s)
                self.send(min(due - self.sent, 2000))
        except BaseException as error:  # raised where the flood is stopped
            self.error = error


class Sampler:
    """The peak of what processes hold, looked at a few times a second from a thread."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._processes = {process: psutil.Process(pid) for process, pid in pids.items()}
        self.peak: Counter[str] = Counter()
        self.object_store_peak = 0
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)
        self._thread.start()

    def now(self) -> dict[str, int]:
        """Private resident memory of each process, bytes."""
        return {process: private_bytes(running) for process, running in self._processes.items()}

    def stop(self) -> None:
        """Stop looking."""
        self._halt.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._halt.wait(_SAMPLE_EVERY_S):
            self.peak |= Counter(self.now())
            self.object_store_peak = max(self.object_store_peak, object_store_bytes())


def private_bytes(process: psutil.Process) -> int:
    """Resident memory less shared pages."""
    memory = process.memory_info()
    return int(memory.rss - memory.shared)


def object_store_bytes() -> int:
    """What is in use of Ray's object store."""
    total, free = (
        resources.get("object_store_memory", 0.0)
        for resources in (ray.cluster_resources(), ray.available_resources())
    )
    return int(total - free)
