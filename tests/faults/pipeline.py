"""The pipeline under test: the real Serve application in the running Ray, and the process ids of its parts."""

import contextlib
import logging
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil
import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError

from services import layout
from services.actors import NAMESPACE, fingerprint, kill_actors, named_actors
from services.applications import pipeline_application
from services.settings import Settings, make_settings
from streaming.batch import Position
from streaming.errors import StoreError
from streaming.layout import own, shard_path
from tests.faults.stream import CATEGORIES, LATENESS_MS, WINDOW_MS

_CALL_TIMEOUT_S = 5.0
_POLL_S = 0.1
_REPLICA = "ray::ServeReplica:pipeline:Supervisor"


def settings_for(broker: str, data_dir: Path, name: str, **streaming: Any) -> Settings:
    """Settings of a run; topics start with `name`.

    The learner books more CPUs than there are, so it waits for them for ever: it has no part in this.
    """
    return make_settings(
        {
            "data_dir": data_dir,
            "metrics": {"port": 0},  # another system may run beside
            "kafka": {
                "bootstrap_servers": broker,
                "items_topic": f"{name}.items",
                "dead_letter_topic": f"{name}.dead",
                "partitions": 4,
                "request_timeout_s": 5,
            },
            "streaming": {
                "sources": [{"topic": f"{name}.events", "fields": {"category": "context.category"}}],
                "sequence_length": 20,
                "logical_shards": 8,
                "shard_actors": 2,
                "ingestors": 2,
                "batch_records": 1000,
                "map_size_gib": 0.5,
                "apply_timeout_s": 10,
                # nothing counts as idle: whether a partition does is a matter of the clock, not of its log
                "windows": {
                    "length_s": WINDOW_MS / 1000,
                    "lateness_s": LATENESS_MS / 1000,
                    "idle_timeout_s": 3600,
                },
                "state": {"half_lives_s": [900, 7200], "categories": CATEGORIES, "session_gap_s": 600},
                **streaming,
            },
            "training": {"cpus_per_worker": 1e6, "model": {"length": 20}},
        },
        source="the settings of the fault run",
    )


class Pipeline:
    """The pipeline of these settings; a context manager that leaves no process behind."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._prefix = fingerprint(settings)
        self._layout_file = settings.data_dir.resolve() / "layout.json"

    def __enter__(self) -> "Pipeline":
        logging.getLogger("ray.serve").setLevel(logging.ERROR)  # importing it had set another one
        serve.start(proxy_location="Disabled")
        serve.run(pipeline_application(self.settings), name="pipeline", route_prefix=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        serve.delete("pipeline")  # the Supervisor first, or it would bring its actors back
        kill_actors()
        wait_until(lambda: not named_actors() and self._is_released(), 30, "the end of all actors")

    def _is_released(self) -> bool:
        """Whether no process hosts a shard any more: a killed one is not gone at once."""
        for shard in range(self.settings.streaming.logical_shards):
            try:
                os.close(own(shard_path(self.settings.data_dir / "state", shard)))
            except StoreError:
                return False
        return True

    def status(self) -> dict[str, Any]:
        """What the Supervisor says; nothing while it is down."""
        return self._supervisor("status") or {}

    def describe(self) -> dict[str, Any]:
        """What can be said about it when something did not come back."""
        return {"actors": named_actors(), "hosting": self.hosting(), "status": self.status()}

    def scale(self, shard_actors: int) -> None:
        """Ask for another number of shard actors, unless that is the case or under way already."""
        if self.hosting().shard_actors != shard_actors:
            self._supervisor("scale", shard_actors=shard_actors)

    def _supervisor(self, method: str, **arguments: Any) -> Any:
        try:
            handle = serve.get_app_handle("pipeline")
            return getattr(handle, method).remote(**arguments).result(timeout_s=_CALL_TIMEOUT_S)
        except Exception:  # Serve raises all kinds of things while its replica is dead
            return None

    def hosting(self) -> layout.Hosting:
        """The layout as it was last written down."""
        return layout.load(self._layout_file, self.settings.streaming)

    def is_hosted(self, shard_actors: int) -> bool:
        """Whether that many actors host all logical shards, and none is left from before."""
        names = self.names("shard")
        hosted = [self.ask(shard, "hosted") for shard in names]
        every = sorted(shard for answer in hosted if answer for shard in answer)
        return len(names) == shard_actors and every == list(range(self.settings.streaming.logical_shards))

    def names(self, kind: str) -> list[str]:
        """Names of the living actors of a kind: shard or ingestor."""
        return sorted(actor for actor in named_actors() if actor.startswith(f"{self._prefix}-{kind}-"))

    def ask(self, actor: str, method: str) -> Any:
        """Call an actor; None where it does not answer."""
        try:
            found = ray.get_actor(actor, namespace=NAMESPACE)
            return ray.get(getattr(found, method).remote(), timeout=_CALL_TIMEOUT_S)
        except (ValueError, RayActorError, GetTimeoutError):
            return None

    def supervisor_pid(self) -> int | None:
        """Process id of the Supervisor's replica, where one is alive; Ray names its processes by what they run."""
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "".join(process.cmdline()[:1]).startswith(_REPLICA):
                    return int(process.pid)
        return None

    def positions(self) -> dict[int, dict[int, Position]]:
        """How far each logical shard is; only those whose actors answer."""
        answers = [self.ask(actor, "positions") for actor in self.names("shard")]
        return {shard: known for answer in answers if answer for shard, known in answer.items()}

    def has_applied(self, ends: dict[int, int]) -> bool:
        """Whether every logical shard has every partition up to its last offset."""
        positions = self.positions()
        return len(positions) == self.settings.streaming.logical_shards and all(
            partition in known and known[partition].applied >= end
            for known in positions.values()
            for partition, end in ends.items()
        )


def wait_until(
    check: Callable[[], Any], timeout_s: float, what: str, halt: threading.Event | None = None
) -> Any:
    """Look until `check()` is something, and return it.

    Raises:
        TimeoutError: it was not in time, or `halt` was set.
    """
    deadline, pause = time.monotonic() + timeout_s, halt or threading.Event()
    while not (found := check()):
        if pause.is_set() or time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:.0f} s")
        pause.wait(_POLL_S)
    return found


class Rewinds:
    """Counts rewinds over the lives of all ingestors: each counts its own, and forgets when it is killed."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._before: Counter[str] = Counter()

    def update(self, ingestor: str, rewinds: int) -> None:
        """Take in what an ingestor says."""
        if rewinds < self._last.get(ingestor, 0):
            self._before[ingestor] += self._last[ingestor]
        self._last[ingestor] = rewinds

    @property
    def total(self) -> int:
        """Rewinds seen so far; those of the last moments before a kill are missed."""
        return sum(self._last.values()) + self._before.total()


def kill(pid: int) -> bool:
    """kill -9; False where the process had gone by itself."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
