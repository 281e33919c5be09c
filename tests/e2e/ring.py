"""A small whole system: users walk along a ring of items, so the last one tells the next; popularity is useless."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from ray import serve

from services.actors import kill_actors
from services.applications import run
from services.settings import Settings, make_settings
from streaming.broker import free_port
from streaming.kafka import ensure_topics, make_producer
from streaming.windows import complete_windows
from training.learner import request_stop

NUM_ITEMS, NUM_USERS, WINDOW_MS = 60, 150, 100_000


class System:
    """The running system and its clients."""

    def __init__(self, settings, base):
        self.settings = settings
        self.http = httpx.Client(base_url=base, timeout=10, trust_env=False)
        self.producer = make_producer(settings.kafka)
        self.place = np.arange(NUM_USERS) % NUM_ITEMS
        self.time_ms = 1_000_000
        self.sent = 0

    def walk(self, rounds):
        """Every user takes `rounds` steps along the ring; a round takes 20 s of event time."""
        for _ in range(rounds):
            for user in range(NUM_USERS):
                self.place[user] = (self.place[user] + 1) % NUM_ITEMS
                self.send(f"u{user}", f"i{self.place[user]}", self.time_ms + user)
            self.time_ms += 20_000
        self.producer.flush(timeout=30)

    def send(self, user, item, time_ms):
        self.sent += 1
        event = {"event_id": f"{user}-{self.sent}", "user_id": user, "item_id": item, "type": "view"}
        value = json.dumps(event | {"timestamp": time_ms}).encode()
        return self.producer.send(self.settings.streaming.events_topic, value, key=user.encode())

    def get(self, path, **params):
        answer = self.http.get(path, params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def recommend(self, user, **params):
        return self.get(f"/v1/recommendations/{user}", **params)

    def windows(self):
        folder = self.settings.data_dir / "windows"
        return complete_windows(folder, self.settings.streaming.logical_shards)

    def close(self):
        self.producer.close(timeout=1)
        self.http.close()


def ring_settings(broker: str, folder: Path, name: str, training: dict[str, Any], **serving: Any) -> Settings:
    """Settings of a small system with topics of its own.

    Args:
        training: how long its first model learns, and on what.
    """
    kafka = {topic: f"{name}.{topic}" for topic in ("items_topic", "dead_letter_topic")}
    return make_settings(
        {
            "data_dir": folder,
            "kafka": kafka | {"bootstrap_servers": broker, "partitions": 2},
            "streaming": {
                "sources": [{"topic": f"{name}.events"}],
                "max_past_s": 4e9,
                "logical_shards": 2,
                "map_size_gib": 0.25,
                "sequence_length": 20,
                "windows": {"length_s": WINDOW_MS / 1000, "lateness_s": 0},
            },
            "training": {
                "model": {
                    "dim": 32,
                    "blocks": 1,
                    "heads": 1,
                    "length": 20,
                    "id_capacity": 256,
                    "repeats": "plain",
                },
                "gate": {
                    "min_targets": 50,
                    "unseen_only": False,
                    "ndcg_tolerance": 0.3,
                    "attacked_ndcg_tolerance": 0.5,
                },
                "max_seconds_per_window": 5,
            }
            | training,
            "serving": {"port": free_port(), "admin_open": True, "stream_clock": True} | serving,
            "metrics": {"port": 0},
            "log": {"format": "json"},
        }
    )


@contextmanager
def ring_system(settings: Settings) -> Iterator[System]:
    """Start it with a catalogue and no events; stop it at the end."""
    ensure_topics(settings.kafka, [settings.streaming.events_topic])
    running = System(settings, run(settings))
    for item in range(NUM_ITEMS):
        record = {"item_id": f"i{item}", "title": f"Stop number {item}", "categories": ["ring"]}
        running.producer.send(
            settings.kafka.items_topic, json.dumps(record).encode(), key=f"i{item}".encode()
        )
    running.producer.flush(timeout=10)
    yield running
    request_stop(settings.data_dir)
    running.close()
    kill_actors()
    serve.shutdown()
