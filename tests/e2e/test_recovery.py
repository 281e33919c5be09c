"""Kill ingestors and shards while events flow: the state must equal that of an undisturbed run."""

import json
import os
import signal
import time

import numpy as np
import pytest
import ray

from services.actors import Actors, kill_actors
from services.settings import make_settings
from streaming.kafka import ensure_topics, make_producer
from streaming.windows import complete_windows, read_window

NUM_EVENTS, NUM_SHARDS = 20_000, 4


def settings_for(broker, data_dir):
    return make_settings(
        {
            "data_dir": data_dir,
            "kafka": {
                "bootstrap_servers": broker,
                "items_topic": "recovery.items",
            },
            "streaming": {
                "sources": [{"topic": "recovery.events"}],
                "max_past_s": 4e9,
                "logical_shards": NUM_SHARDS,
                "shard_actors": 2,
                "ingestors": 2,
                "batch_records": 500,
                "map_size_gib": 0.25,
                "apply_timeout_s": 10,
                "windows": {"length_s": 1000, "lateness_s": 10, "idle_timeout_s": 1},
            },
        }
    )


@pytest.fixture(scope="module")
def published(broker, tmp_path_factory):
    """A topic of events of 300 users, some sent twice, some malformed, some late."""
    settings = settings_for(broker, tmp_path_factory.mktemp("unused"))
    kafka, topic = settings.kafka, settings.streaming.events_topic
    ensure_topics(kafka, [topic])
    producer = make_producer(kafka, linger_ms=20)
    random = np.random.default_rng(7)
    users, items = random.integers(0, 300, NUM_EVENTS), random.integers(0, 900, NUM_EVENTS)
    jitter = random.integers(0, 15_000, NUM_EVENTS)
    for row in range(NUM_EVENTS):
        event_id = f"e{row - 1 if row % 50 == 0 and row else row}"
        user = users[row - 1] if row % 50 == 0 and row else users[row]
        event = {"event_id": event_id, "user_id": f"u{user}", "item_id": f"i{items[row]}", "type": "click"}
        event["timestamp"] = 1_000_000 + row * 500 - int(jitter[row])
        value = b"{" if row % 1000 == 999 else json.dumps(event).encode()
        producer.send(topic, key=f"u{user}".encode(), value=value)
    producer.flush(timeout=30)
    producer.close()


def run_through(broker, data_dir, disturb):
    """Run the streaming actors over the whole topic; returns (rows, totals, windows)."""
    actors = Actors(settings_for(broker, data_dir))
    actors.start()
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            disturb(actors)
            try:
                stats = [
                    s
                    for answer in ray.get([a.stats.remote() for a in actors.shards], timeout=20)
                    for s in answer
                ]
            except ray.exceptions.RayActorError:
                continue
            done = sum(s.applied + s.duplicates + s.dead_letters for s in stats)
            if done >= NUM_EVENTS:
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"only {done} of {NUM_EVENTS} events were accounted for")
        wait_for_windows(actors)
        rows = np.concatenate(ray.get([actor.rows.remote() for actor in actors.shards], timeout=20))
        totals = {
            name: sum(getattr(s, name) for s in stats)
            for name in ("applied", "duplicates", "dead_letters", "late")
        }
        windows = {
            w.start_ms: read_window(w.path).to_pydict()
            for w in complete_windows(data_dir / "windows", NUM_SHARDS)
        }
        return rows[np.argsort(rows["user"])], totals, windows
    finally:
        kill_actors()


def wait_for_windows(actors):
    """Until all shards have closed the same windows."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        stats = [
            s for answer in ray.get([a.stats.remote() for a in actors.shards], timeout=20) for s in answer
        ]
        if len({s.windows_closed for s in stats}) == 1 and stats[0].windows_closed >= 9:
            return
        time.sleep(0.1)
    pytest.fail(f"shards closed different windows: {[s.windows_closed for s in stats]}")


def test_killed_actors_lose_and_double_nothing(broker, ray_session, published, tmp_path):
    rows, totals, windows = run_through(broker, tmp_path / "calm", lambda actors: None)
    assert totals["applied"] + totals["duplicates"] + totals["dead_letters"] == NUM_EVENTS
    assert totals["dead_letters"] == 20
    assert totals["duplicates"] > 300

    kills = []

    def disturb(actors):
        victims = [*actors.ingestors, *actors.shards]
        if len(kills) < 6:
            victim = victims[len(kills) % len(victims)]
            try:
                os.kill(ray.get(victim.pid.remote(), timeout=20), signal.SIGKILL)
                kills.append(victim)
            except ray.exceptions.RayActorError:
                return

    shaken_rows, shaken_totals, shaken_windows = run_through(broker, tmp_path / "shaken", disturb)
    assert len(kills) == 6
    assert shaken_totals == totals
    for name in rows.dtype.names:
        if name == "decayed":
            np.testing.assert_allclose(shaken_rows[name], rows[name], rtol=1e-9)
        else:
            np.testing.assert_array_equal(shaken_rows[name], rows[name], err_msg=name)
    assert shaken_windows == windows
    assert len(windows) >= 9
