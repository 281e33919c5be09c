"""The whole way of a held user: the detector's file, the state, the list, and out of it by release or purge."""

import json

import numpy as np
import pytest
from ray import serve
from typer.testing import CliRunner

from services.commands.quarantine import app
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_producer
from streaming.reader import StateReader
from streaming.trust import name_of, weights, write_trust
from streaming.windows import complete_windows, read_window
from tests.faults.pipeline import Pipeline, settings_for, wait_until

WINDOW_MS = 60_000
START_MS = 1_760_000_040_000
USERS = ("ann", "bob", "cat")


@pytest.fixture
def settings(broker, ray_session, tmp_path):
    windows = {"length_s": WINDOW_MS / 1000, "lateness_s": 0, "idle_timeout_s": 0.3}
    made = settings_for(
        broker, tmp_path, "held", windows=windows, logical_shards=2, shard_actors=1, ingestors=1
    )
    ensure_topics(made.kafka, [made.streaming.events_topic])
    yield made
    serve.shutdown()


def send(settings, window):
    """An event of every user in a window."""
    producer = make_producer(settings.kafka)
    for place, user in enumerate(USERS):
        event = {"event_id": f"{user}-{window}", "user_id": user, "item_id": "film", "type": "view"}
        value = json.dumps(event | {"timestamp": START_MS + window * WINDOW_MS + place}).encode()
        producer.send(settings.streaming.events_topic, value, key=user.encode())
    producer.flush(timeout=20)
    producer.close()


def closed(settings, count):
    def found():
        windows = complete_windows(settings.data_dir / "windows", settings.streaming.logical_shards)
        return windows if len(windows) >= count else None

    return wait_until(found, 60, f"window {count}")


def column(window):
    table = read_window(window.path)
    return dict(zip(table["user"].to_pylist(), table["trust"].to_pylist(), strict=True))


def run(settings, config, *arguments):
    result = CliRunner().invoke(app, [*arguments, "--settings", str(config)])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_held_user_is_listed_and_released_or_purged(settings, tmp_path):
    config = tmp_path / "headrace.toml"
    config.write_text(
        f'data_dir = "{settings.data_dir}"\n[kafka]\nbootstrap_servers = "{settings.kafka.bootstrap_servers}"\n'
        f"[serving]\nport = 9\n[streaming]\nlogical_shards = 2\nsequence_length = 20\n"
        f"windows.length_s = {WINDOW_MS / 1000}\n"
        f"state.half_lives_s = {list(settings.streaming.state.half_lives_s)}\n"
        f"state.categories = {json.dumps(settings.streaming.state.categories)}\n"
        f"[[streaming.sources]]\ntopic = {json.dumps(settings.streaming.events_topic)}\n"
    )
    ann, bob, cat = (hash_one(user) for user in USERS)
    reader = StateReader(settings.data_dir / "state", settings.streaming)

    def trust():
        rows = reader.read(USERS)
        return [float(row["trust"]) if row["total"] else None for row in rows]

    with Pipeline(settings) as pipeline:
        for window in (0, 1):
            send(settings, window)
        [first, *_] = closed(settings, 1)
        held = np.array([bob, cat], np.uint64)
        write_trust(
            settings.data_dir,
            first.start_ms,
            held,
            np.zeros(2, np.float32),
            np.ones(2, bool),
            ["a crowd"] * 2,
        )
        wait_until(lambda: trust() == [1, 0, 0], 30, "the screen in the state")
        wait_until(lambda: pipeline.status()["trust"]["screened"] == first.name, 10, "its name in the status")
        listed = json.loads(run(settings, config, "list", "--json"))
        assert {case["user"] for case in listed} == {name_of(bob), name_of(cat)}

        run(settings, config, "release", "cat")
        wait_until(lambda: trust() == [1, 0, 1], 30, "the release in the state")
        assert "Erased from the state and from all windows." in run(
            settings, config, "purge", name_of(bob), "--timeout", "30"
        )
        assert trust() == [1, None, 1]
        assert column(first) == {ann: 1, cat: 1}
        assert weights(settings.data_dir, first.start_ms, np.array([ann, bob, cat], np.uint64)).tolist() == [
            1,
            0,
            1,
        ]
        assert json.loads(run(settings, config, "list", "--json")) == []

        pipeline.scale(2)
        wait_until(lambda: pipeline.is_hosted(2), 60, "the move of the shards")
        for window in (2, 3):
            send(settings, window)
        late = closed(settings, 3)[2]
        assert column(late)[cat] == 1
        assert trust()[::2] == [1, 1]
    reader.close()
