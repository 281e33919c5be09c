"""`make chaos-serve`: parts of the running system die under a steady load of requests; which of them failed?

The real broker behind a proxy, the real `pipeline` and `api` applications with two replicas, requests of every kind
at a fixed rate. One fault after the other, each awaited until the system is whole again. A request *failed* when it
got no answer, or another status than is documented; it was *degraded* when events were refused with 503 and
Retry-After while the broker was away, or when a ranking came from popularity instead of a model.
"""

import argparse
import contextlib
import json
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

USERS, ITEMS = 200, 120
CLIENTS, PER_S = 4, 40  # requests per second in all
_CALM_S = 3.0  # of load before and after a fault
_WHOLE_S = 120.0
_AWAY_S = 14.0  # longer than events wait for the broker


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


def judge(method: str, path: str, answer: httpx.Response | httpx.HTTPError) -> tuple[str, str]:
    """What an answer is worth, and why."""
    if isinstance(answer, httpx.HTTPError):
        return "failed", f"{method} {path}: {type(answer).__name__}"
    if answer.status_code in (200, 202):
        body = answer.json()
        answers = body.get("results", [body])
        if any(one.get("model", {}).get("kind") == "popular" for one in answers):
            return "degraded", f"{method} {path}: popular instead of a model"
        return "ok", ""
    if path == "/v1/events" and answer.status_code == 503 and "retry-after" in answer.headers:
        return "degraded", "events refused with 503 and Retry-After"
    return "failed", f"{method} {path}: {answer.status_code} {answer.text[:120]}"


class Load:
    """Clients that ask at a steady rate, from threads; a context manager."""

    def __init__(self, url: str) -> None:
        self._url, self._stop, self._lock = url, threading.Event(), threading.Lock()
        self.phases: dict[str, Counts] = defaultdict(Counts)
        self.phase = "calm"
        self._threads = [threading.Thread(target=self._run, args=(n,), daemon=True) for n in range(CLIENTS)]

    def __enter__(self) -> "Load":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self, seed: int) -> None:
        rng, pause = random.Random(seed), CLIENTS / PER_S
        due = time.monotonic() + seed * pause / CLIENTS
        with httpx.Client(base_url=self._url, timeout=20) as client:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due = max(due + pause, time.monotonic())
                phase, started = self.phase, time.perf_counter()
                method, path, asked = _request(rng)
                answer: httpx.Response | httpx.HTTPError
                try:
                    answer = client.request(method, path, **asked)
                except httpx.HTTPError as error:
                    answer = error
                verdict, cause = judge(
                    method, path.split("?")[0].replace(asked.get("user", "\0"), ""), answer
                )
                with self._lock:
                    self.phases[phase].add(verdict, cause, time.perf_counter() - started)


def _request(rng: random.Random) -> tuple[str, str, dict[str, Any]]:
    user, item = f"u{rng.randrange(USERS)}", f"i{rng.randrange(ITEMS)}"
    kind = rng.random()
    if kind < 0.7:
        return "GET", f"/v1/recommendations/{user}", {}
    if kind < 0.8:
        session = {"events": [{"item_id": item, "type": "view"}]}
        return "POST", "/v1/recommendations", {"json": {"requests": [{"user_id": user}, session]}}
    if kind < 0.9:
        return "POST", "/v1/rank", {"json": {"user_id": user, "items": [item, "i1", "i2"]}}
    event = {"user_id": user, "item_id": item, "type": "view"}
    return "POST", "/v1/events", {"json": {"events": [event]}}


class System:
    """The system under test, made and started; a context manager."""

    def __init__(self, folder: Path) -> None:
        from streaming.broker import EmbeddedBroker, free_port
        from tests.faults.pipeline import Pipeline, settings_for
        from tests.faults.proxy import Proxy

        port, inner = free_port(), free_port()
        self._parts = contextlib.ExitStack()
        self._broker, self.proxy = EmbeddedBroker(inner, advertised_port=port), Proxy(port, inner)
        base = settings_for(f"127.0.0.1:{port}", folder, "chaos")
        serving = {"port": free_port(), "refresh_s": 0.2, "replicas": {"minimum": 2, "maximum": 2}}
        self.settings = base.model_copy(
            update={"serving": type(base.serving).model_validate(base.serving.model_dump() | serving)}
        )
        self.pipeline = Pipeline(self.settings)
        self.url = ""

    def __enter__(self) -> "System":
        from services.applications import run

        self._parts.enter_context(self._broker)
        self._parts.enter_context(self.proxy)
        self.url = run(self.settings)
        self._fill()
        return self

    def __exit__(self, *_: object) -> None:
        from ray import serve

        from services.actors import kill_actors

        serve.delete("api")
        serve.delete("pipeline")
        kill_actors()
        self._parts.close()

    def _fill(self) -> None:
        """Items and events through the topics, then two models over the catalogue that came of it."""
        from streaming.kafka import make_producer
        from tests.faults.pipeline import wait_until

        kafka, types = self.settings.kafka, self.settings.streaming.event_types
        producer = make_producer(kafka)
        for n in range(ITEMS):
            document = {"item_id": f"i{n}", "title": f"Item {n}", "categories": ["abc"[n % 3]]}
            producer.send(kafka.items_topic, key=f"i{n}".encode(), value=json.dumps(document).encode())
        rng, now_ms = random.Random(0), int(time.time() * 1000)
        for user in range(USERS):
            for place in range(10):
                event = {
                    "event_id": f"{user}-{place}",
                    "user_id": f"u{user}",
                    "item_id": f"i{rng.randrange(ITEMS)}",
                    "type": rng.choice(types),
                    "timestamp": now_ms - 600_000 + place * 1000,
                }
                topic = self.settings.streaming.sources[0].topic
                producer.send(topic, key=event["user_id"].encode(), value=json.dumps(event).encode())
        producer.flush(30)
        producer.close()
        wait_until(lambda: self._status().get("catalog", {}).get("encoded") == ITEMS, 180, "the catalogue")
        wait_until(lambda: self._status().get("users") == USERS, 120, "the users")
        for seed in (1, 2):
            self.bundle(f"v{seed:04}", seed)
        self.promote("v0001")
        wait_until(self.is_whole, _WHOLE_S, "the first model")

    def bundle(self, version: str, seed: int) -> Path:
        """Write a model with random weights over the catalogue of now."""
        import numpy as np
        import torch

        from streaming.catalog import CatalogReader
        from training.bundle import save_bundle
        from training.config import ModelConfig
        from training.items import ItemSlots, build_table
        from training.model import SequenceModel

        torch.manual_seed(seed)
        types = self.settings.streaming.event_types
        with contextlib.closing(CatalogReader(self.settings.data_dir / "catalog")) as reader:
            now = reader.snapshot()
        width = now.vectors.shape[1]
        shape = ModelConfig(length=20, text_dim=width, num_types=len(types), id_capacity=1024)
        slots = ItemSlots(shape.id_capacity)
        table = build_table(slots, now.hashes, now.ids, now.vectors, np.empty(0, np.uint64), width)
        return save_bundle(
            self.settings.data_dir / "models",
            version,
            model=SequenceModel(shape),
            table=table,
            popularity=np.full(len(table), 1 / len(table), np.float32),
            event_types=types,
            evaluation={},
            lineage={"created_at": time.time()},
        )

    def promote(self, version: str) -> None:
        """Make a version current, as the gate does."""
        from training.registry import Registry

        Registry(self.settings.data_dir / "models").promote(version, "chaos")

    def _status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = httpx.get(f"{self.url}/v1/stats", timeout=5).json()
        except (httpx.HTTPError, ValueError):
            return {}
        return found

    def versions(self) -> set[str | None]:
        """What the replicas answer with: several requests, each to any of them."""
        found = set()
        for _ in range(12):
            with contextlib.suppress(httpx.HTTPError, KeyError, ValueError):
                found.add(
                    httpx.get(f"{self.url}/v1/recommendations/u1", timeout=5).json()["model"]["version"]
                )
        return found

    def replicas(self) -> list[int]:
        """Process ids of the API's replicas."""
        return _processes("ray::ServeReplica:api:")

    def is_whole(self) -> bool:
        """Whether two replicas answer with a model, every shard is hosted, and the supervisor tells of no problem."""
        from ray import serve

        states = serve.status().applications["api"].deployments["Api"].replica_states
        running = {getattr(state, "value", state): count for state, count in states.items()}
        status = self._status()
        return (
            running.get("RUNNING") == 2
            and status.get("phase") == "running"
            and not status.get("problems")
            and self.pipeline.is_hosted(self.settings.streaming.shard_actors)
            and None not in self.versions()
        )


def _processes(name: str) -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(process.cmdline()[:1]).startswith(name):
                found.append(int(process.pid))
    return found


def faults(system: System) -> Iterator[tuple[str, Callable[[], None]]]:
    """Each kind of fault and how it strikes; striking ends when the cause is over, not when all is whole again."""
    from tests.faults.pipeline import kill, wait_until

    rng = random.Random(1)

    def swap() -> None:
        [now] = system.versions()
        other = {"v0001": "v0002", "v0002": "v0001"}[str(now)]
        system.promote(other)
        wait_until(lambda: system.versions() == {other}, 60, f"the swap to {other}")

    def kill_replica() -> None:
        victim = rng.choice(system.replicas())
        kill(victim)
        wait_until(lambda: len({*system.replicas()} - {victim}) == 2, _WHOLE_S, "another replica")

    def kill_shard() -> None:
        name = rng.choice(system.pipeline.names("shard"))
        kill(system.pipeline.ask(name, "pid"))

    def kill_supervisor() -> None:
        pid = system.pipeline.supervisor_pid()
        if pid is not None:
            kill(pid)

    def lose_broker() -> None:
        system.proxy.begin("refuse", _AWAY_S)
        system.proxy.wait_healed(_AWAY_S + 20)

    def damage_bundle() -> None:
        path = system.bundle("v0666", 3) / "model.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        [before] = system.versions()
        system.promote("v0666")
        time.sleep(_CALM_S)
        if system.versions() != {before}:
            raise AssertionError(f"a damaged bundle was taken into service: {system.versions()}")
        system.promote(str(before))

    def damage_registry() -> None:
        current = system.settings.data_dir / "models" / "current"
        sound = current.read_bytes()
        current.write_bytes(b"\xff\x00 no version")
        time.sleep(_CALM_S)
        current.unlink()
        time.sleep(_CALM_S)
        current.write_bytes(sound)

    yield "model_swap", swap
    yield "replica_kill", kill_replica
    yield "shard_kill", kill_shard
    yield "broker_loss", lose_broker
    yield "damaged_bundle", damage_bundle
    yield "damaged_registry", damage_registry
    yield "supervisor_kill", kill_supervisor


def prove(system: System, times: int, tell: Callable[[str], None]) -> dict[str, Any]:
    """Strike with each fault some times under load; returns the report."""
    from tests.faults.pipeline import wait_until

    struck: Counter[str] = Counter()
    whole_s: dict[str, float] = {}
    with Load(system.url) as load:
        time.sleep(_CALM_S)
        for turn in range(times):
            for kind, strike in faults(system):
                tell(f"round {turn + 1}: {kind}")
                load.phase, started = kind, time.monotonic()
                strike()
                wait_until(system.is_whole, _WHOLE_S, f"the end of {kind}")
                whole_s[kind] = max(whole_s.get(kind, 0.0), round(time.monotonic() - started, 1))
                time.sleep(_CALM_S)
                struck[kind] += 1
        load.phase = "calm"
        time.sleep(_CALM_S)
    return report_of(struck, load.phases, whole_s)


def report_of(struck: Counter[str], phases: dict[str, Counts], whole_s: dict[str, float]) -> dict[str, Any]:
    """The figures as `make chaos-serve` writes them."""
    return {
        "faults": dict(struck),
        "requests": sum(counts.requests for counts in phases.values()),
        "failed_requests": sum(counts.failed for counts in phases.values()),
        "degraded_requests": sum(counts.degraded for counts in phases.values()),
        "by_kind": {
            kind: {
                "requests": counts.requests,
                "failed": counts.failed,
                "degraded": counts.degraded,
                "slowest_ms": round(counts.slowest_ms, 1),
                "whole_after_s": whole_s.get(kind),
                "causes": dict(counts.causes.most_common(5)),
            }
            for kind, counts in phases.items()
        },
    }


def table_of(report: dict[str, Any]) -> Table:
    """The figures for people."""
    table = Table(
        "fault",
        "times",
        "requests",
        "failed",
        "degraded",
        "slowest",
        "whole after",
        title="Faults under load",
    )
    for kind, counts in report["by_kind"].items():
        whole = counts["whole_after_s"]
        table.add_row(
            kind,
            str(report["faults"].get(kind, "")),
            str(counts["requests"]),
            str(counts["failed"]),
            str(counts["degraded"]),
            f"{counts['slowest_ms']:.0f} ms",
            "" if whole is None else f"{whole:.0f} s",
        )
    return table


def main() -> int:
    """Run, print, write the report; returns 0 only where no request failed."""
    parser = argparse.ArgumentParser("python -m tests.faults.serving", description=__doc__)
    parser.add_argument("--report", type=Path, metavar="FILE", help="write the figures as JSON")
    parser.add_argument("--times", type=int, default=3, help="how often each fault strikes (%(default)s)")
    chosen, console = parser.parse_args(), Console(file=sys.stdout)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from services.local_ray import start_ray, stop_ray
    from tests.faults.__main__ import machine

    with tempfile.TemporaryDirectory(prefix="headrace-chaos-") as name:
        folder = Path(name)
        try:
            start_ray(folder / "ray")
            with (
                (folder / "ray.out").open("w") as out,
                contextlib.redirect_stdout(out),
                System(folder / "data") as one,
            ):
                report = prove(one, chosen.times, lambda said: console.print(said, style="dim"))
        finally:
            stop_ray()
    report["machine"] = machine()
    console.print(table_of(report))
    for kind, counts in report["by_kind"].items():
        for cause, count in counts["causes"].items():
            console.print(f"{kind}: {count} x {cause}", highlight=False)
    if chosen.report:
        chosen.report.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return 0 if report["failed_requests"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
