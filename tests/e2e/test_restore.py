"""A node without state takes the newest snapshots and reads only what came after them."""

import json
import shutil
import time

import numpy as np
import pytest
import ray

from services.actors import Actors, kill_actors
from services.settings import make_settings
from streaming.kafka import ensure_topics, make_producer


@pytest.fixture
def settings(broker, ray_session, tmp_path):
    made = make_settings(
        {
            "data_dir": tmp_path / "data",
            "kafka": {"bootstrap_servers": broker, "items_topic": "restore.items", "partitions": 2},
            "streaming": {
                "sources": [{"topic": "restore.events"}],
                "logical_shards": 4,
                "shard_actors": 2,
                "map_size_gib": 0.1,
                "snapshots": {"url": f"file://{tmp_path}/snapshots", "every_s": 3600},
            },
        }
    )
    ensure_topics(made.kafka, [made.streaming.events_topic])
    yield made
    kill_actors()


def send(settings, numbers):
    producer = make_producer(settings.kafka)
    for number in numbers:
        event = {
            "event_id": f"e{number}",
            "user_id": f"u{number % 40}",
            "item_id": f"i{number}",
            "type": "view",
        }
        value = json.dumps(event | {"timestamp": 1_760_000_000_000 + number}).encode()
        producer.send(settings.streaming.events_topic, value, key=f"u{number % 40}".encode())
    producer.flush(timeout=20)
    producer.close()


def rows_once_applied(actors, expected):
    deadline = time.monotonic() + 40
    while time.monotonic() < deadline:
        stats = [
            s for answer in ray.get([a.stats.remote() for a in actors.shards], timeout=20) for s in answer
        ]
        if sum(shard.applied for shard in stats) == expected:
            rows = np.concatenate(ray.get([a.rows.remote() for a in actors.shards], timeout=20))
            return rows[np.argsort(rows["user"])]
        time.sleep(0.1)
    pytest.fail(f"{sum(shard.applied for shard in stats)} of {expected} events are applied")


def test_a_node_without_state_restores_and_reads_only_the_rest(settings):
    actors = Actors(settings)
    actors.start_stream()
    send(settings, range(300))
    rows_once_applied(actors, 300)
    assert ray.get([a.snapshot.remote() for a in actors.shards], timeout=60) == [2, 2]
    send(settings, range(300, 400))
    before = rows_once_applied(actors, 400)
    kill_actors()

    shutil.rmtree(settings.data_dir / "state")
    again = Actors(settings)
    again.start_stream()
    after = rows_once_applied(again, 400)
    assert (after.view(np.uint8) == before.view(np.uint8)).all()
    stats = ray.get([a.snapshot_stats.remote() for a in again.shards], timeout=20)
    assert [one.restored for one in stats] == [2, 2]
    assert ray.get(again.ingestors[0].stats.remote(), timeout=20).records == 100


def test_shards_move_to_other_actors_and_back_while_events_come(settings):
    actors = Actors(settings)
    actors.start_stream()
    send(settings, range(200))
    for count, upto in ((4, 300), (1, 400), (3, 500)):
        actors.scale(count, 1 + count % 2)
        assert len(actors.shards) == count
        hosted = ray.get([a.hosted.remote() for a in actors.shards], timeout=20)
        assert sorted(shard for shards in hosted for shard in shards) == [0, 1, 2, 3]
        assert max(map(len, hosted)) - min(map(len, hosted)) <= 1
        send(settings, range(upto - 100, upto))
    rows = rows_once_applied(actors, 500)
    assert rows["total"].sum() == 500
    # a supervisor that comes anew finds the layout as it was left
    found = Actors(settings)
    found.start_stream()
    assert (found.hosting, len(found.shards)) == (actors.hosting, 3)
