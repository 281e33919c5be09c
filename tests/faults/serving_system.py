"""The system under test: the real broker behind a proxy, the real `pipeline` and `api` with two replicas."""

import contextlib
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.faults.serving_load import ITEMS, USERS

REPLICAS = 2
WHOLE_S = 180.0


class System:
    """The system under test, made and started; a context manager.

    Args:
        folder: of its data.
        more: settings of serving beside its own.
    """

    def __init__(self, folder: Path, **more: Any) -> None:
        from streaming.broker import EmbeddedBroker, free_port
        from tests.faults.pipeline import Pipeline, settings_for
        from tests.faults.proxy import Proxy

        port, inner = free_port(), free_port()
        self._parts = contextlib.ExitStack()
        self._broker, self.proxy = EmbeddedBroker(inner, advertised_port=port), Proxy(port, inner)
        base = settings_for(f"127.0.0.1:{port}", folder, "chaos")
        serving = {
            "port": free_port(),
            "refresh_s": 0.2,
            "replicas": {"minimum": REPLICAS, "maximum": REPLICAS},
        } | more
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
        """Ends the broker; the applications end with Ray."""
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
                producer.send(topic, key=f"u{user}".encode(), value=json.dumps(event).encode())
        producer.flush(30)
        producer.close()
        wait_until(lambda: self.status().get("catalog", {}).get("encoded") == ITEMS, 180, "the catalogue")
        wait_until(lambda: self.status().get("users") == USERS, 120, "the users")
        for seed in (1, 2):
            self.bundle(f"v{seed:04}", seed)
        self.promote("v0001")
        wait_until(self.is_whole, WHOLE_S, "the first model")

    def bundle(self, version: str, seed: int, spoil: Callable[[Any], None] = lambda model: None) -> Path:
        """Write a model with random weights over the catalogue of now; `spoil` may change it before."""
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
        model = SequenceModel(shape)
        spoil(model)
        return save_bundle(
            self.settings.data_dir / "models",
            version,
            model=model,
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

    def status(self) -> dict[str, Any]:
        """What `/v1/stats` says; empty where it does not answer."""
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

    def replicas(self) -> set[int]:
        """Process ids of the API's replicas."""
        return _processes("ray::ServeReplica:api:")

    def roll(self) -> None:
        """Change a setting of the API: Serve starts new replicas and ends the old ones, which drain first."""
        from ray import serve

        from serving.app import api_application

        serving = self.settings.serving
        serving = serving.model_copy(update={"stats_window": serving.stats_window + 1})
        self.settings = self.settings.model_copy(update={"serving": serving})
        parts = self.settings.data_dir, self.settings.kafka, self.settings.streaming, serving
        serve.run(api_application(*parts), name="api", route_prefix="/")

    def is_whole(self) -> bool:
        """Whether all replicas answer with one model, all shards are hosted and no problem is told of."""
        from ray import serve

        states = serve.status().applications["api"].deployments["Api"].replica_states
        running = {getattr(state, "value", state): count for state, count in states.items()}
        status = self.status()
        return (
            running == {"RUNNING": REPLICAS}
            and status.get("phase") == "running"
            and not status.get("problems")
            and self.pipeline.is_hosted(self.settings.streaming.shard_actors)
            and None not in (versions := self.versions())
            and len(versions) == 1
        )


def _processes(name: str) -> set[int]:
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(process.cmdline()[:1]).startswith(name):
                found.add(int(process.pid))
    return found
