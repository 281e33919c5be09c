"""A steady load of requests, and what each answer is worth."""

import asyncio
import random
import threading
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import httpx

USERS, ITEMS = 200, 120
CLIENTS, PER_S = 4, 50  # requests per second in all
STALE_S = 2.0  # an event that was acknowledged this long ago belongs in the state
_TIMEOUT_S = 20.0  # longer than the API waits for the broker


@dataclass
class Counts:
    """What became of the requests of one phase."""

    requests: int = 0
    failed: int = 0
    degraded: int = 0
    slowest_ms: float = 0.0
    causes: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: str, cause: str, seconds: float) -> None:
        """Count one; `verdict`: ok, degraded or failed."""
        self.requests += 1
        self.failed += verdict == "failed"
        self.degraded += verdict == "degraded"
        self.slowest_ms = max(self.slowest_ms, seconds * 1000)
        if verdict != "ok":
            self.causes[cause] += 1


@dataclass(frozen=True, slots=True)
class Asked:
    """A request; `about` names its kind without any id."""

    about: str
    method: str
    path: str
    body: dict[str, Any] | None = None
    user: str = ""

    @property
    def writes(self) -> bool:
        """Whether it sends events for the stream."""
        return self.path == "/v1/events"


def draw(rng: random.Random) -> Asked:
    """Any request: 70 % one ranking, 10 % two in a batch, 10 % candidates, 10 % an event."""
    user, item = f"u{rng.randrange(USERS)}", f"i{rng.randrange(ITEMS)}"
    kind = rng.random()
    if kind < 0.7:
        return Asked("GET recommendations", "GET", f"/v1/recommendations/{user}", None, user)
    if kind < 0.8:
        session = {"events": [{"item_id": item, "type": "view"}]}
        body = {"requests": [{"user_id": user}, session]}
        return Asked("POST recommendations", "POST", "/v1/recommendations", body)
    if kind < 0.9:
        return Asked("POST rank", "POST", "/v1/rank", {"user_id": user, "items": [item, "i1", "i2"]}, user)
    event = {"user_id": user, "item_id": item, "type": "view"}
    return Asked("POST events", "POST", "/v1/events", {"events": [event]}, user)


def judge(
    asked: Asked, answer: httpx.Response | httpx.HTTPError, written: tuple[int, int] | None = None
) -> tuple[str, str]:
    """What an answer is worth, and why: ok, degraded as documented, or failed.

    Args:
        written: partition and offset of the user's newest event that has to be in the state.
    """
    if isinstance(answer, httpx.HTTPError):
        return "failed", f"{asked.about}: {type(answer).__name__} {answer}".strip()
    if answer.status_code == 503 and asked.writes and "retry-after" in answer.headers:
        return "degraded", f"{asked.about}: refused with 503 and Retry-After"
    if answer.status_code not in (200, 202):
        return "failed", f"{asked.about}: {answer.status_code} {answer.text[:160]}"
    return _judge_ranking(asked, answer.json(), written)


def _judge_ranking(asked: Asked, body: dict[str, Any], written: tuple[int, int] | None) -> tuple[str, str]:
    if any(one.get("model", {}).get("kind") == "popular" for one in body.get("results", [body])):
        return "degraded", f"{asked.about}: popular instead of a model"
    state = body.get("state")
    if state is None or written is None or state["partition"] != written[0] or state["offset"] >= written[1]:
        return "ok", ""
    if state["age_ms"] is None:
        return "failed", f"{asked.about}: stale state that does not tell its age"
    return "degraded", f"{asked.about}: stale state, with its age"


class Load:
    """Sends requests at a steady rate whether or not earlier ones are answered; a context manager.

    Events carry no id; each request names itself with X-Request-ID, as a gateway in front would.
    """

    def __init__(self, url: str) -> None:
        self._url, self._stop = url, threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="load", daemon=True)
        self._written: dict[str, tuple[tuple[int, int], float]] = {}  # by user: position and when
        self.phases: dict[str, Counts] = defaultdict(Counts)
        self.phase = "calm"
        self.acknowledged: dict[
            str, list[tuple[int, int]]
        ] = {}  # ids of events: partition and offset, each time

    def __enter__(self) -> "Load":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(2 * _TIMEOUT_S)

    async def _run(self) -> None:
        rng, due, number = random.Random(1), time.monotonic(), 0
        clients = [httpx.AsyncClient(base_url=self._url, timeout=_TIMEOUT_S) for _ in range(CLIENTS)]
        waiting: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            due, number = due + 1 / PER_S, number + 1
            task = asyncio.create_task(
                self._ask(clients[number % CLIENTS], draw(rng), self.phases[self.phase])
            )
            waiting.add(task)
            task.add_done_callback(waiting.discard)
        await asyncio.gather(*waiting)
        for client in clients:
            await client.aclose()

    async def _ask(self, client: httpx.AsyncClient, asked: Asked, counts: Counts) -> None:
        started = time.monotonic()
        position, at = self._written.get(asked.user, (None, started))
        answer: httpx.Response | httpx.HTTPError
        try:
            name = {"x-request-id": uuid.uuid4().hex}
            answer = await client.request(asked.method, asked.path, json=asked.body, headers=name)
        except httpx.HTTPError as error:
            answer = error
        taken = time.monotonic() - started
        verdict, cause = judge(asked, answer, position if started - at >= STALE_S else None)
        counts.add(verdict, cause, taken)
        if asked.writes and verdict == "ok" and isinstance(answer, httpx.Response):
            [done] = answer.json()["accepted"]
            place = done["partition"], done["offset"]
            self.acknowledged.setdefault(done["event_id"], []).append(place)
            self._written[asked.user] = place, time.monotonic()
