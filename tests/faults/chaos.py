"""What goes wrong in a run, when, and in which order: a seeded schedule, and who carries it out."""

import random
import threading
from collections import Counter
from dataclasses import dataclass, field

from tests.faults.pipeline import Pipeline, kill, wait_until
from tests.faults.proxy import KINDS, Proxy
from tests.faults.stream import Feed

_ALIVE_TIMEOUT_S = 90.0
_RESCALE_TIMEOUT_S = 120.0
_HEAL_TIMEOUT_S = 30.0
_SHARES = {"ingestor": 0.4, "shard": 0.4, "supervisor": 0.2}
MORE, FEWER = 4, 2  # shard actors in the middle of the run, and before and after


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    events: int = 300_000
    users: int = 4_000
    kills: int = 50
    connection_faults: int = 24
    rescales: bool = True
    seed: int = 1
    longest_pause_s: float = 2.0  # between two faults
    longest_fault_s: float = 5.0  # of the network

    def schedule(self) -> list[str]:
        """Faults in their order; going to more actors and back stands around the middle."""
        draw = random.Random(self.seed)
        counts = {victim: round(self.kills * share) for victim, share in _SHARES.items()}
        counts["shard"] += self.kills - sum(counts.values())
        kills = [f"kill {victim}" for victim, count in counts.items() for _ in range(count)]
        network = [f"net {KINDS[number % len(KINDS)]}" for number in range(self.connection_faults)]
        faults = kills + network
        draw.shuffle(faults)
        if self.rescales:
            third = len(faults) // 3
            faults = [*faults[:third], "rescale up", *faults[third:-third], "rescale down", *faults[-third:]]
        return faults


@dataclass
class Survived:
    """Faults of each kind, as they came about."""

    kills: Counter[str] = field(default_factory=Counter)
    rescales: int = 0


class Chaos:
    """Carries a plan out, and lets the stream go on with every fault, so that faults meet all of it."""

    def __init__(self, plan: Plan, pipeline: Pipeline, proxy: Proxy, feed: Feed) -> None:
        self._plan, self._pipeline, self._proxy, self._feed = plan, pipeline, proxy, feed
        self._random = random.Random(plan.seed + 1)
        self._victims: dict[str, tuple[str, int]] = {}  # kind: name and process id of the last one
        self._halt = threading.Event()
        self._rescaling: threading.Thread | None = None
        self._rescaling_error: BaseException | None = None
        self.survived = Survived()

    def run(self) -> None:
        """All faults of the plan.

        Raises:
            TimeoutError: something did not come back.
        """
        faults = self._plan.schedule()
        for number, fault in enumerate(faults):
            self._feed.allow(self._plan.events * (number + 1) // (len(faults) + 1))
            self._halt.wait(self._random.uniform(0, self._plan.longest_pause_s))
            kind, what = fault.split()
            if kind == "kill":
                self._kill(what)
            elif kind == "net":
                self._disturb(what)
            else:
                self._rescale(MORE if what == "up" else FEWER)
        self._proxy.wait_healed(_HEAL_TIMEOUT_S)
        self._finish_rescale()

    def stop(self) -> None:
        """Leave off; a move that is under way is not waited for."""
        self._halt.set()
        if self._rescaling is not None:
            self._rescaling.join(_ALIVE_TIMEOUT_S)

    def _kill(self, kind: str) -> None:
        """Kill one of a kind, once the last victim of that kind is back."""

        def strike() -> bool:
            name, pid = self._victim(kind)
            if pid is None or not kill(pid):
                return False
            self._victims[kind] = name, pid
            self.survived.kills[kind] += 1
            return True

        wait_until(lambda: self._is_back(kind), _ALIVE_TIMEOUT_S, f"the return of the killed {kind}")
        wait_until(strike, _ALIVE_TIMEOUT_S, f"a living {kind}")

    def _victim(self, kind: str) -> tuple[str, int | None]:
        if kind == "supervisor":
            return kind, self._pipeline.supervisor_pid()
        names = self._pipeline.names(kind)
        name = self._random.choice(names) if names else ""
        return name, self._pipeline.ask(name, "pid") if names else None

    def _is_back(self, kind: str) -> bool:
        if kind not in self._victims:
            return True
        name, killed = self._victims[kind]
        if kind == "supervisor":
            return self._pipeline.supervisor_pid() not in (None, killed)
        if name not in self._pipeline.names(kind):
            return True  # rescaling took its place away
        return self._pipeline.ask(name, "pid") not in (None, killed)

    def _disturb(self, kind: str) -> None:
        self._proxy.wait_healed(_HEAL_TIMEOUT_S)
        draw = self._random
        self._proxy.begin(
            kind,
            draw.uniform(0.5, self._plan.longest_fault_s),
            delay_s=draw.uniform(0.02, 0.3),
            bytes_per_s=draw.uniform(50_000, 500_000),
        )

    def _rescale(self, shard_actors: int) -> None:
        """Begin to move shards; other faults go on meanwhile."""
        self._finish_rescale()

        def rescaled() -> bool:
            self._pipeline.scale(
                shard_actors
            )  # again where the Supervisor died before it had written that down
            return self._pipeline.is_hosted(shard_actors)

        def move() -> None:
            try:
                wait_until(
                    rescaled, _RESCALE_TIMEOUT_S, f"the move to {shard_actors} shard actors", self._halt
                )
                self.survived.rescales += 1
            except BaseException as error:  # raised where the end of the move is waited for
                self._rescaling_error = error

        self._rescaling = threading.Thread(target=move, name="rescale", daemon=True)
        self._rescaling.start()

    def _finish_rescale(self) -> None:
        if self._rescaling is not None:
            self._rescaling.join(_RESCALE_TIMEOUT_S + _ALIVE_TIMEOUT_S)
        if self._rescaling_error is not None:
            raise self._rescaling_error
