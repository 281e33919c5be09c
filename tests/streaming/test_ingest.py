"""Ingest on the real broker: dead letters keep their bytes and say why; the stream goes on."""

import json
import time
import uuid

import pytest
import ray

from services.actors import Actors, kill_actors
from services.settings import make_settings
from streaming.kafka import ensure_topics, make_consumer, make_producer, topic_partitions


@pytest.fixture
def settings(broker, ray_session, tmp_path):
    name = f"ingest-{uuid.uuid4().hex[:6]}"
    kafka = {
        "bootstrap_servers": broker,
        "dead_letter_topic": f"{name}.dead",
        "partitions": 2,
    }
    kafka["items_topic"] = f"{name}.items"
    windows = {"length_s": 1000, "idle_timeout_s": 1}
    streaming = {
        "sources": [{"topic": name}],
        "max_past_s": 4e9,
        "logical_shards": 2,
        "map_size_gib": 0.1,
        "windows": windows,
    }
    made = make_settings({"data_dir": tmp_path, "kafka": kafka, "streaming": streaming})
    ensure_topics(made.kafka, [name])
    return made


@pytest.fixture
def actors(settings):
    running = Actors(settings)
    running.start_stream()
    yield running
    kill_actors()


def totals(actors):
    answers = ray.get([actor.stats.remote() for actor in actors.shards], timeout=20)
    return [
        sum(getattr(s, name) for a in answers for s in a)
        for name in ("applied", "dead_letters", "duplicates")
    ]


def wait_for(actors, expected, timeout_s=30.0):
    deadline = time.monotonic() + timeout_s
    while totals(actors) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    assert totals(actors) == expected


def test_bad_records_become_dead_letters_and_the_rest_is_applied(settings, actors):
    producer = make_producer(settings.kafka)
    good = {"user_id": "ann", "item_id": "a", "type": "view", "timestamp": 1000}
    for number in range(20):
        producer.send(
            settings.streaming.events_topic,
            json.dumps(good | {"event_id": f"e{number}"}).encode(),
            key=b"ann",
        )
    bad = [b"\xff\x00 not json", json.dumps(good | {"type": "zap"}).encode()]
    sent = [
        producer.send(settings.streaming.events_topic, value, key=b"k", headers=[("trace", b"7")])
        for value in bad
    ]
    producer.send(settings.streaming.events_topic, json.dumps(good | {"event_id": "e3"}).encode(), key=b"ann")
    producer.flush(timeout=10)
    wait_for(actors, [20, 2, 1])

    consumer = make_consumer(settings.kafka)
    parts = topic_partitions(settings.kafka.dead_letter_topic, [0])
    consumer.assign(parts)
    consumer.seek(parts[0], 0)
    letters = []
    deadline = time.monotonic() + 10
    while len(letters) < 2 and time.monotonic() < deadline:
        letters += consumer.poll(timeout_ms=200).get(parts[0], [])
    consumer.close(autocommit=False)
    producer.close()
    assert [letter.value for letter in letters] == bad
    headers = [dict(letter.headers) for letter in letters]
    assert [h["headrace.offset"] for h in headers] == [str(f.get(1).offset).encode() for f in sent]
    assert all(
        h["headrace.topic"] == settings.streaming.events_topic.encode() and h["trace"] == b"7"
        for h in headers
    )
    assert b"expected a JSON object" in headers[0]["headrace.reason"]
    assert b"field type: expected one of" in headers[1]["headrace.reason"]


def test_a_record_of_ten_megabytes_becomes_a_dead_letter_and_the_stream_goes_on(settings, actors):
    producer = make_producer(settings.kafka)
    producer.send(settings.streaming.events_topic, b'{"user_id": "' + b"x" * 10_000_000, key=b"u").get(20)
    event = {"event_id": "e", "user_id": "u", "item_id": "a", "type": "view", "timestamp": 1}
    producer.send(settings.streaming.events_topic, json.dumps(event).encode(), key=b"u").get(10)
    wait_for(actors, [1, 1, 0])
    producer.close()


def test_offsets_are_committed_for_lag_tools(settings, actors):
    producer = make_producer(settings.kafka)
    event = json.dumps(
        {"event_id": "e", "user_id": "u", "item_id": "a", "type": "view", "timestamp": 1}
    ).encode()
    partition = producer.send(settings.streaming.events_topic, event, key=b"u").get(10).partition
    consumer = make_consumer(settings.kafka)
    part = topic_partitions(settings.streaming.events_topic, [partition])[0]
    deadline = time.monotonic() + 20
    while consumer.committed(part) != 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert consumer.committed(part) == 1
    consumer.close(autocommit=False)
    producer.close()


def test_a_burst_after_silence_is_late_in_no_partition(settings, actors):
    """All partitions are idle; then a burst arrives in each, and one of them is read first."""
    time.sleep(settings.streaming.windows.idle_timeout_s + 2 * settings.streaming.tick_s)
    producer = make_producer(settings.kafka, linger_ms=20)
    for number in range(20_000):  # a window every 100 events, users in both partitions
        event = {"event_id": f"e{number}", "user_id": f"u{number % 50}", "item_id": "a", "type": "view"}
        value = json.dumps(event | {"timestamp": number * 10_000}).encode()
        producer.send(settings.streaming.events_topic, value, key=f"u{number % 50}".encode())
    producer.flush(timeout=30)
    wait_for(actors, [20_000, 0, 0])
    answers = ray.get([actor.stats.remote() for actor in actors.shards], timeout=20)
    assert [s.late for a in answers for s in a] == [0, 0]
    producer.close()
