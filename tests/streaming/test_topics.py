"""Topics that are empty, vanish and come back, or grow while they are read: the stream goes on, once each."""

import json
import time
import uuid

import pytest
import ray
from kafka import KafkaAdminClient

import services.actors
from services.actors import Actors, kill_actors
from services.settings import make_settings
from streaming.kafka import ensure_topics, make_producer, partitions_of
from streaming.windows import complete_windows


@pytest.fixture
def settings(broker, ray_session, tmp_path):
    name = f"topics-{uuid.uuid4().hex[:6]}"
    topics = [f"{name}.clicks", f"{name}.orders"]
    made = make_settings(
        {
            "data_dir": tmp_path,
            "kafka": {
                "bootstrap_servers": broker,
                "items_topic": f"{name}.items",
                "dead_letter_topic": f"{name}.dead",
                "partitions": 2,
            },
            "streaming": {
                "sources": [
                    {"topic": topics[0]},
                    {"topic": topics[1], "constants": {"type": "purchase"}, "fields": {"user_id": "buyer"}},
                ],
                "logical_shards": 2,
                "map_size_gib": 0.1,
                "max_past_s": 4e9,
                "windows": {"length_s": 1000, "idle_timeout_s": 1},
            },
        }
    )
    ensure_topics(made.kafka, topics)
    return made


@pytest.fixture
def actors(settings):
    running = Actors(settings)
    running.start_stream()
    yield running
    kill_actors()


@pytest.fixture
def admin(broker):
    client = KafkaAdminClient(bootstrap_servers=broker)
    yield client
    client.close()


def send(settings, topic, numbers, times=None, partition=None, **fields):
    producer = make_producer(settings.kafka)
    for number, time_ms in zip(numbers, times or [1000 + number for number in numbers], strict=True):
        event = {"event_id": f"e{number}", "item_id": "a", "timestamp": time_ms} | fields
        value = json.dumps({"user_id": f"u{number}", "type": "view"} | event).encode()
        producer.send(topic, value, key=f"u{number}".encode(), partition=partition)
    producer.flush(timeout=10)
    producer.close()


def stats(actors):
    return [s for answer in ray.get([a.stats.remote() for a in actors.shards], timeout=20) for s in answer]


def applied(actors):
    return sum(shard.applied for shard in stats(actors))


def wait_for(check, timeout_s=40.0):
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if check():
            return
        time.sleep(0.1)
    pytest.fail("it did not happen in time")


def test_several_topics_each_with_its_mapping_and_an_empty_one(settings, actors):
    clicks, orders = (source.topic for source in settings.streaming.sources)
    send(settings, orders, range(5), buyer="ann", type="nonsense")  # the type is a constant there
    wait_for(lambda: applied(actors) == 5)  # though the other topic is empty
    send(settings, clicks, range(5, 8), user_id="ann")
    wait_for(lambda: applied(actors) == 8)
    rows = ray.get(actors.shards[0].rows.remote(), timeout=10)
    assert len(rows) == 1
    types = [settings.streaming.event_types[code] for code in rows[0]["events"]["type"][-8:]]
    assert types == ["purchase"] * 5 + ["view"] * 3


def test_a_topic_that_vanishes_and_comes_back_is_read_from_its_beginning(settings, actors, admin):
    clicks, orders = (source.topic for source in settings.streaming.sources)
    send(settings, clicks, range(50))
    wait_for(lambda: applied(actors) == 50)
    admin.delete_topics([clicks])
    wait_for(lambda: partitions_of(settings.kafka, clicks) == [])
    wait_for(actors.assign)  # what the supervisor does every few seconds
    send(settings, orders, range(50, 55), buyer="ann")
    wait_for(lambda: applied(actors) == 55)  # the others go on

    ensure_topics(settings.kafka, [clicks])
    wait_for(actors.assign)
    send(settings, clicks, range(100, 110))
    wait_for(lambda: applied(actors) == 65)  # their offsets were used before, by records of the old topic


def test_partitions_that_are_added_are_read_too(settings, monkeypatch):
    """The broker's answer is cut to its first partition: the embedded broker cannot add any."""
    clicks = settings.streaming.events_topic
    whole = services.actors.partitions_of_topics
    monkeypatch.setattr(
        services.actors, "partitions_of_topics", lambda *asked: {t: p[:1] for t, p in whole(*asked).items()}
    )
    actors = Actors(settings)
    actors.start_stream()
    try:
        days = [number * 86_400_000 for number in range(3)]
        send(settings, clicks, range(3), times=days, partition=0)  # closes the windows of the first two days
        wait_for(lambda: [s.closed_upto_ms > days[1] for s in stats(actors)] == [True, True])
        assert not actors.assign()
        monkeypatch.undo()
        assert actors.assign()
        send(settings, clicks, range(100, 103), times=days, partition=1)
        wait_for(lambda: applied(actors) == 6)
        assert (
            sum(shard.late for shard in stats(actors)) == 2
        )  # they go to the next open window, in all shards
        send(settings, clicks, range(200, 202), times=[days[2] * 2] * 2, partition=0)
        send(settings, clicks, range(300, 302), times=[days[2] * 2] * 2, partition=1)
        wait_for(lambda: all(shard.windows_closed == 4 for shard in stats(actors)))
        assert len(complete_windows(settings.data_dir / "windows", 2)) == 4
    finally:
        kill_actors()
