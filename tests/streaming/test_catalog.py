"""The catalogue: what is written is what readers see, and unchanged text is never encoded twice."""

import json
import time
import uuid

import numpy as np
import pytest

from streaming.catalog import CatalogReader, CatalogStore, Item, parse_item
from streaming.cataloguer import Cataloguer
from streaming.config import KafkaSettings
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_producer


class LengthEncoder:
    """Encodes a text as its length; counts how much it was asked to do."""

    fingerprint = "length"

    def __init__(self):
        self.encoded = []

    def encode(self, texts):
        self.encoded += texts
        return np.array([[len(text), 1.0] for text in texts], np.float32)


def test_a_missing_catalogue_is_empty(tmp_path):
    reader = CatalogReader(tmp_path / "none")
    assert (reader.version(), len(reader.snapshot())) == (0, 0)


def test_changed_text_is_encoded_again_and_only_that(tmp_path):
    store, reader = CatalogStore(tmp_path, 0.1), CatalogReader(tmp_path)
    store.apply([("a", Item(item_id="a", title="one")), ("b", Item(item_id="b", title="two"))], 0, 1)
    todo = store.missing("v1", 10)
    store.put_vectors("v1", todo, np.ones((2, 3), np.float32))
    assert store.missing("v1", 10) == []
    store.apply([("a", Item(item_id="a", title="one", available=False))], 0, 2)
    assert store.missing("v1", 10) == []
    store.apply([("a", Item(item_id="a", title="other"))], 0, 3)
    assert [text for _, text in store.missing("v1", 10)] == ["other"]
    assert len(store.missing("v2", 10)) == 2
    snapshot = reader.snapshot()
    assert dict(zip(snapshot.ids, snapshot.titles, strict=True)) == {"a": "other", "b": "two"}
    assert snapshot.hashes.tolist() == sorted([hash_one("a"), hash_one("b")])
    assert snapshot.version == reader.version() == 4
    store.close()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "field (record)"),
        (b'{"title": "x"}', "field item_id: Field required"),
        (b'{"item_id": "a", "categories": "x"}', "field categories"),
    ],
)
def test_a_record_that_is_no_item_says_why(value, reason):
    answer = parse_item(None, value)
    assert isinstance(answer, str)
    assert reason in answer


def test_items_flow_from_the_topic_into_the_store(broker, tmp_path):
    kafka = KafkaSettings(bootstrap_servers=broker, items_topic=f"items-{uuid.uuid4().hex[:6]}")
    ensure_topics(kafka)
    producer, encoder = make_producer(kafka), LengthEncoder()
    for number in range(5):
        value = json.dumps({"item_id": f"i{number}", "title": "t" * number, "categories": ["c"]}).encode()
        producer.send(kafka.items_topic, value, key=f"i{number}".encode())
    producer.send(kafka.items_topic, b"no item", key=b"x")
    producer.send(kafka.items_topic, None, key=b"i4")
    producer.flush(timeout=10)
    actor, reader = Cataloguer(kafka, tmp_path, lambda: encoder), CatalogReader(tmp_path)
    deadline = time.monotonic() + 20
    while (
        not (len(reader.snapshot()) == 4 and reader.snapshot().encoded.all()) and time.monotonic() < deadline
    ):
        time.sleep(0.05)
    snapshot = reader.snapshot()
    assert sorted(snapshot.ids) == ["i0", "i1", "i2", "i3"]
    assert snapshot.vectors[:, 0].tolist() == [len(text) for text in snapshot.texts]
    assert actor.status().rejected == 1
    actor.stop()

    again = Cataloguer(kafka, tmp_path, lambda: encoder)  # starts behind what it has applied
    encoded = list(encoder.encoded)
    producer.send(kafka.items_topic, json.dumps({"item_id": "i9", "title": "new"}).encode(), key=b"i9")
    producer.flush(timeout=10)
    deadline = time.monotonic() + 20
    while again.status().encoded < 5 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert encoder.encoded == [*encoded, "new"]
    again.stop()
    producer.close()


class OtherEncoder(LengthEncoder):
    """Another encoder of the same width."""

    fingerprint = "other"

    def encode(self, texts):
        return -super().encode(texts)


def test_texts_are_encoded_anew_when_another_encoder_is_due_and_only_then(broker, tmp_path):
    kafka = KafkaSettings(bootstrap_servers=broker, items_topic=f"items-{uuid.uuid4().hex[:6]}")
    ensure_topics(kafka)
    producer, first, second = make_producer(kafka), LengthEncoder(), OtherEncoder()
    due = [first]
    actor, reader = Cataloguer(kafka, tmp_path, lambda: due[0]), CatalogReader(tmp_path)

    def wait_for(items, encoder):
        deadline = time.monotonic() + 20
        while reader.snapshot().of_encoder(encoder.fingerprint).encoded.sum() < items:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def publish(name):
        producer.send(
            kafka.items_topic, json.dumps({"item_id": name, "title": name}).encode(), key=name.encode()
        )
        producer.flush(timeout=10)

    publish("a")
    wait_for(1, first)
    due[0] = second
    wait_for(1, second)
    publish("bb")
    wait_for(2, second)
    assert (first.encoded, second.encoded) == (["a"], ["a", "bb"])
    assert sorted(reader.snapshot().vectors[:, 0].tolist()) == [-2, -1]
    actor.stop()
    producer.close()
