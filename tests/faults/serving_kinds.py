"""The kinds of fault. Each strikes, and tells how to see that it has been got over."""

import itertools
import os
import random
import signal
import time
from collections.abc import Callable

from tests.faults.pipeline import kill, wait_until
from tests.faults.serving_system import REPLICAS, WHOLE_S, System

CALM_S = 3.0  # of load before and after a fault
_HANG_S = 2.0
_AWAY_S = 14.0  # longer than events wait for the broker

Sign = Callable[[], bool]
"""Whether the trace of a fault is gone; the system as a whole is looked at beside it."""


class Faults:
    """Strikes a system; `kinds` has each kind by name, in the order in which they strike.

    A strike returns when the cause is over, not when the system has recovered.
    """

    def __init__(self, system: System) -> None:
        self._system, self._random = system, random.Random(1)
        self._damaged = itertools.count(601)
        self.kinds: dict[str, Callable[[], Sign]] = {
            "model_swap": self._swap,
            "replica_kill": self._kill_replica,
            "replica_hang": self._hang_replica,
            "rolling_update": self._roll,
            "shard_kill": self._kill_shard,
            "broker_loss": self._lose_broker,
            "damaged_bundle": self._damage_bundle,
            "damaged_registry": self._damage_registry,
            "supervisor_kill": self._kill_supervisor,
        }

    def _swap(self) -> Sign:
        other = {"v0001": "v0002", "v0002": "v0001"}[self._version()]
        self._system.promote(other)
        return lambda: self._system.versions() == {other}

    def _kill_replica(self) -> Sign:
        """It dies at once."""
        before = self._system.replicas()
        kill(self._random.choice(sorted(before)))
        return self._another_than(before)

    def _hang_replica(self) -> Sign:
        """It answers nobody for a while, and dies with the requests that it has taken."""
        before = self._system.replicas()
        victim = self._random.choice(sorted(before))
        os.kill(victim, signal.SIGSTOP)
        time.sleep(_HANG_S)
        kill(victim)
        return self._another_than(before)

    def _roll(self) -> Sign:
        """All replicas are replaced by ones with another setting."""
        before = self._system.replicas()
        self._system.roll()
        return lambda: len(now := self._system.replicas()) == REPLICAS and not now & before

    def _another_than(self, before: set[int]) -> Sign:
        def seen() -> bool:
            now = self._system.replicas()
            return len(now) == REPLICAS and now != before

        return seen

    def _kill_shard(self) -> Sign:
        pipeline = self._system.pipeline
        name = self._random.choice(pipeline.names("shard"))
        pid = wait_until(lambda: pipeline.ask(name, "pid"), WHOLE_S, "a living shard")
        kill(pid)
        return lambda: pipeline.ask(name, "pid") not in (None, pid)

    def _kill_supervisor(self) -> Sign:
        pipeline = self._system.pipeline
        pid = wait_until(pipeline.supervisor_pid, WHOLE_S, "a living supervisor")
        kill(pid)
        return lambda: pipeline.supervisor_pid() not in (None, pid)

    def _lose_broker(self) -> Sign:
        """Connections are reset, and refused for longer than events wait."""
        self._system.proxy.begin("refuse", _AWAY_S)
        self._system.proxy.wait_healed(_AWAY_S + 20)
        return lambda: True

    def _damage_bundle(self) -> Sign:
        """A bundle with one wrong bit becomes current, and a while later the sound one again."""
        before, damaged = self._version(), f"v{next(self._damaged):04}"
        path = self._system.bundle(damaged, 3) / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        self._system.promote(damaged)
        time.sleep(CALM_S)
        self._must_still_serve(before)
        self._system.promote(before)
        return lambda: self._system.versions() == {before}

    def _damage_registry(self) -> Sign:
        """The file that names the current version holds rubbish, then is gone, and then as it was."""
        before = self._version()
        current = self._system.settings.data_dir / "models" / "current"
        sound = current.read_bytes()
        current.write_bytes(b"\xff\x00 no version")
        time.sleep(CALM_S)
        self._must_still_serve(before)
        current.unlink()
        time.sleep(CALM_S)
        self._must_still_serve(before)
        current.write_bytes(sound)
        return lambda: self._system.versions() == {before}

    def _version(self) -> str:
        [version] = self._system.versions()
        return str(version)

    def _must_still_serve(self, version: str) -> None:
        if (seen := self._system.versions()) != {version}:
            raise AssertionError(f"the model in service changed from {version} to {seen}")
