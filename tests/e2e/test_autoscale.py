"""Lag brings actors, and calm takes them away again, while every event is applied once."""

import json
import time

import pytest

from services.actors import kill_actors
from services.settings import make_settings
from services.supervisor import Supervisor
from streaming.kafka import ensure_topics, make_producer

USERS = 400
BACKLOG = 6_000  # records, many times the lag that asks for an actor
TIMEOUT_S = 90


@pytest.fixture
def settings(broker, ray_session, tmp_path):
    """Batches so small that the stream lags for as long as the rule wants to see it."""
    made = make_settings(
        {
            "data_dir": tmp_path / "data",
            "kafka": {"bootstrap_servers": broker, "items_topic": "lag.items", "partitions": 2},
            "streaming": {
                "sources": [{"topic": "lag.events"}],
                "logical_shards": 4,
                "shard_actors": 1,
                "ingestors": 1,
                "map_size_gib": 0.1,
                "batch_records": 10,
                "pipeline_depth": 1,
                "autoscale": {"enabled": True, "target_lag": 100, "max_actors": 2, "cooldown_s": 3},
            },
        }
    )
    ensure_topics(made.kafka, [made.streaming.events_topic])
    yield made
    kill_actors()


class Feed:
    """Sends events in numbered order, more whenever the stream has nearly caught up."""

    def __init__(self, settings):
        self._topic = settings.streaming.events_topic
        self._producer = make_producer(settings.kafka)
        self.sent = 0

    def __enter__(self):
        self.send(BACKLOG)
        return self

    def __exit__(self, *_):
        self._producer.close()

    def send(self, count):
        for number in range(self.sent, self.sent + count):
            user = f"u{number % USERS}"
            event = {"event_id": f"e{number}", "user_id": user, "item_id": f"i{number % 50}", "type": "view"}
            value = json.dumps(event | {"timestamp": 1_760_000_000_000 + number}).encode()
            self._producer.send(self._topic, value, key=user.encode())
        self._producer.flush(timeout=30)
        self.sent += count

    def keep_behind(self, status):
        """However fast the machine drains it, a backlog stays."""
        if self.sent - status.get("events", {}).get("applied", 0) < BACKLOG / 2:
            self.send(BACKLOG)


def until(supervisor, reached, what):
    deadline = time.monotonic() + TIMEOUT_S
    while not reached(status := supervisor.status()):
        assert time.monotonic() < deadline, f"{what} within {TIMEOUT_S} s: {status}"
        time.sleep(0.2)  # between two looks, bounded by the deadline
    return status


def test_lag_brings_actors_and_calm_takes_them_away(settings, monkeypatch):
    monkeypatch.setattr(Supervisor, "_watch_learner", lambda self: None)  # it is about the stream
    supervisor = Supervisor(settings)
    try:
        with Feed(settings) as feed:

            def two_actors(status):
                feed.keep_behind(status)
                return status.get("layout", {}).get("shard_actors") == 2

            grown = until(supervisor, two_actors, "no actor was added")
        assert grown["layout"]["version"] > 0
        until(supervisor, lambda status: status["events"]["applied"] == feed.sent, "not all was applied")
        until(supervisor, lambda status: status["layout"]["shard_actors"] == 1, "no actor was taken away")
        calm = until(
            supervisor, lambda status: status["layout"]["settled"] and status["lag"] == 0, "it did not settle"
        )
        assert calm["events"]["applied"] == feed.sent
        assert calm["events"]["duplicates"] == 0
        assert calm["users"] == USERS
    finally:
        supervisor.stop()
