"""A text that changes moves its item's vector only so far from where it first stood."""

import hashlib
import json
import time
import uuid
from collections import Counter
from contextlib import closing

import lmdb
import numpy as np
import pytest

from streaming import environment
from streaming.catalog import CatalogReader, CatalogStore, Item
from streaming.cataloguer import Cataloguer, encode_batch
from streaming.config import KafkaSettings
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_producer
from training.text_guard import TextGuard, degrees

CAP = 20.0
GUARD = TextGuard(most_degrees=CAP)
HONEST = " ".join(f"w{place}" for place in range(20))
STUFFED = "best top hit"


class BagEncoder:
    """A text as the directions of its words, each named after a corner of a 64-dimensional cube."""

    def __init__(self, fingerprint="bag"):
        self.fingerprint = fingerprint

    def encode(self, texts):
        vectors = np.zeros((len(texts), 64), np.float32)
        for row, text in enumerate(texts):
            for word, times in Counter(text.split()).items():
                rng = np.random.default_rng(list(f"{self.fingerprint}{word}".encode()))
                vectors[row] += times * rng.choice([-1, 1], 64)
        norm = np.linalg.norm(vectors, axis=1, keepdims=True)
        return np.divide(vectors, norm, out=vectors, where=norm > 0)

    def one(self, text):
        return self.encode([text])[0]


class Catalogue:
    """A store that is encoded after every change, as the catalogue actor does."""

    def __init__(self, folder, encoder, guard):
        self.encoder, self.guard = encoder, guard
        self.store, self.reader = CatalogStore(folder, 0.1), CatalogReader(folder)
        self.offset = 0

    def close(self):
        self.reader.close()
        self.store.close()

    def write(self, *titles, encode=True):
        """Titles of item "a" in one batch; None deletes it. The vector (64,) it then has."""
        items = [("a", None if title is None else Item(item_id="a", title=title)) for title in titles]
        self.offset += 1
        self.store.apply(items, 0, self.offset)
        return self.encode() if encode else None

    def encode(self):
        """The vector of item "a" once nothing is left to encode."""
        while encode_batch(self.store, self.encoder, self.guard):
            pass
        vectors = self.reader.snapshot().vectors
        return vectors[0] if len(vectors) else None


@pytest.fixture
def catalogue(tmp_path):
    with closing(Catalogue(tmp_path / "catalog", BagEncoder(), GUARD)) as made:
        yield made


def angle(one, two):
    return float(degrees(one[None], two[None])[0])


def test_a_new_item_is_encoded_as_it_is(catalogue):
    assert np.array_equal(catalogue.write(HONEST), catalogue.encoder.one(HONEST))
    assert catalogue.store.held_back() == 0


def test_a_stuffed_title_moves_no_further_than_the_cap(catalogue):
    first, asked = catalogue.write(HONEST), catalogue.encoder.one(STUFFED)
    moved = catalogue.write(STUFFED)
    assert angle(first, asked) > 60
    assert angle(first, moved) == pytest.approx(CAP, abs=0.01)
    assert angle(moved, asked) == pytest.approx(angle(first, asked) - CAP, abs=0.01)
    assert catalogue.store.held_back() == 1


def test_many_small_edits_reach_no_further_than_one(catalogue):
    words = HONEST.split()
    first = before = catalogue.write(HONEST)
    for place in range(len(words)):
        words[place] = f"x{place}"
        asked = catalogue.encoder.one(" ".join(words))
        now = catalogue.write(" ".join(words))
        assert angle(before, now) < CAP
        assert angle(first, now) <= CAP + 0.01
        before = now
    assert angle(first, asked) > 60


def test_an_honest_small_edit_is_taken_as_it_is(catalogue):
    first = catalogue.write(HONEST)
    edited = HONEST.replace("w7", "x7")
    assert 1 < angle(first, catalogue.encoder.one(edited)) < CAP
    assert np.array_equal(catalogue.write(edited), catalogue.encoder.one(edited))
    assert catalogue.store.held_back() == 0


def test_who_takes_a_change_back_is_held_back_no_longer(catalogue):
    first = catalogue.write(HONEST)
    catalogue.write(STUFFED)
    assert np.array_equal(catalogue.write(HONEST), first)
    assert catalogue.store.held_back() == 0


@pytest.mark.parametrize("batches", [[[None], [STUFFED]], [[None, STUFFED]]], ids=["two", "one"])
def test_deleted_and_added_again_it_is_a_new_item(catalogue, batches):
    catalogue.write(HONEST)
    catalogue.write(STUFFED)
    for titles in batches:
        now = catalogue.write(*titles, encode=titles[-1] is not None)
    assert np.array_equal(now, catalogue.encoder.one(STUFFED))
    assert catalogue.store.held_back() == 0
    assert angle(catalogue.write(HONEST), now) == pytest.approx(CAP, abs=0.01), "the new text is the anchor"


def test_a_deleted_item_is_not_counted(catalogue):
    catalogue.write(HONEST)
    catalogue.write(STUFFED)
    catalogue.write(None)
    assert catalogue.store.held_back() == 0
    assert catalogue.reader.counts() == (0, 0)


def test_another_encoder_starts_from_the_present_text(catalogue):
    catalogue.write(HONEST)
    catalogue.write(STUFFED)
    catalogue.encoder = other = BagEncoder("other")
    first = catalogue.encode()
    assert np.array_equal(first, other.one(STUFFED))
    assert catalogue.store.held_back() == 0
    assert angle(catalogue.write(HONEST), first) == pytest.approx(CAP, abs=0.01)


def anchors(folder):
    env = environment.open_reader(folder)
    (anchored,) = environment.open_databases(env, b"anchors")
    with env.begin() as txn:
        found = txn.stat(anchored)["entries"]
    environment.close(env)
    return found


def test_an_item_without_text_has_no_anchor_until_it_has_one(catalogue, tmp_path):
    assert not catalogue.write("").any()
    assert anchors(tmp_path / "catalog") == 0
    assert np.array_equal(catalogue.write(HONEST), catalogue.encoder.one(HONEST))
    assert angle(catalogue.write(STUFFED), catalogue.encoder.one(HONEST)) == pytest.approx(CAP, abs=0.01)


def test_a_text_taken_away_in_between_does_not_lose_the_anchor(catalogue):
    first = catalogue.write(HONEST)
    assert not catalogue.write("").any()
    assert angle(catalogue.write(STUFFED), first) == pytest.approx(CAP, abs=0.01)


def test_the_encoder_reads_cleaned_texts_and_people_the_title_as_it_is(catalogue):
    vector = catalogue.write("t\u200bop hit hit hit hit")
    assert np.array_equal(vector, catalogue.encoder.one("top hit hit"))
    snapshot = catalogue.reader.snapshot()
    assert snapshot.titles == snapshot.texts == ["t\u200bop hit hit hit hit"]


def test_anchors_outlive_the_process(tmp_path):
    with closing(Catalogue(tmp_path, BagEncoder(), GUARD)) as before:
        first = before.write(HONEST)
    with closing(Catalogue(tmp_path, BagEncoder(), GUARD)) as after:
        assert angle(after.write(STUFFED), first) == pytest.approx(CAP, abs=0.01)
    with closing(Catalogue(tmp_path, BagEncoder(), GUARD)) as again:
        assert again.store.held_back() == 1


# --- the guard's settings -------------------------------------------------------------------------------------


def stamp(catalogue):
    return catalogue.reader.snapshot().stamps[0].tobytes()


def test_without_a_guard_all_is_as_it_was_before_there_was_one(catalogue):
    catalogue.guard = None
    catalogue.write(HONEST)
    loud = "hit hit hit hit"
    assert np.array_equal(catalogue.write(loud), catalogue.encoder.one(loud))
    assert stamp(catalogue) == hashlib.blake2b(f"bag\0{loud}".encode(), digest_size=16).digest()
    assert catalogue.store.held_back() == 0


def test_switched_off_and_on_again_it_trusts_what_changed_meanwhile(catalogue):
    catalogue.write(HONEST)
    catalogue.write(STUFFED)
    catalogue.guard = None
    assert np.array_equal(catalogue.encode(), catalogue.encoder.one(STUFFED))
    assert catalogue.store.held_back() == 0
    catalogue.guard = GUARD
    assert np.array_equal(catalogue.encode(), catalogue.encoder.one(STUFFED))


def test_another_cap_holds_from_the_same_anchor(catalogue):
    first = catalogue.write(HONEST)
    catalogue.write(STUFFED)
    catalogue.guard = TextGuard(most_degrees=30)
    assert angle(catalogue.encode(), first) == pytest.approx(30, abs=0.01)


@pytest.mark.parametrize(
    "other",
    [None, TextGuard(most_degrees=CAP + 1), TextGuard(CAP, most_words=9), TextGuard(CAP, most_repeats=9)],
)
def test_texts_are_encoded_anew_when_the_guard_changes_and_only_then(catalogue, other):
    catalogue.write(HONEST)
    before, encoder = stamp(catalogue), catalogue.encoder.fingerprint
    assert catalogue.store.missing(encoder, 9, TextGuard(most_degrees=CAP)) == []
    assert [text for _, text in catalogue.store.missing(encoder, 9, other)] == [HONEST]
    assert catalogue.reader.snapshot().of_encoder(encoder).encoded.all(), "the old vectors serve meanwhile"
    assert not catalogue.reader.snapshot().of_encoder("other").encoded.any()
    catalogue.guard = other
    catalogue.encode()
    assert stamp(catalogue) != before
    assert catalogue.reader.snapshot().of_encoder(encoder).encoded.all()


def test_a_changed_text_has_no_vector_of_the_encoder_until_it_is_encoded(catalogue):
    catalogue.write(HONEST)
    catalogue.write(STUFFED, encode=False)
    assert not catalogue.reader.snapshot().of_encoder("bag").encoded.any()


# --- stores of before -----------------------------------------------------------------------------------------


def old_store(folder, encoder):
    """What was written before there were anchors: three databases, stamps of encoder and text."""
    folder.mkdir()
    key = hash_one("a").to_bytes(8, "big")
    with closing(lmdb.open(str(folder), map_size=2**24, max_dbs=4)) as env:
        items, vectors, meta = (env.open_db(name) for name in (b"items", b"vectors", b"meta"))
        with env.begin(write=True) as txn:
            txn.put(key, Item(item_id="a", title=HONEST).model_dump_json().encode(), db=items)
            said = hashlib.blake2b(f"{encoder.fingerprint}\0{HONEST}".encode(), digest_size=16).digest()
            txn.put(key, said + encoder.one(HONEST).tobytes(), db=vectors)
            txn.put(b"version", b"2", db=meta)


def test_a_store_of_before_can_be_read(tmp_path):
    old_store(tmp_path / "catalog", BagEncoder())
    with closing(CatalogReader(tmp_path / "catalog")) as reader:
        assert reader.snapshot().of_encoder("bag").encoded.all()


def test_a_store_of_before_goes_on_and_is_guarded(tmp_path):
    encoder = BagEncoder()
    old_store(tmp_path / "catalog", encoder)
    with closing(Catalogue(tmp_path / "catalog", encoder, GUARD)) as catalogue:
        assert catalogue.store.missing("bag", 9) == [], "without a guard nothing is encoded anew"
        first = catalogue.encode()
        assert np.array_equal(first, encoder.one(HONEST))
        assert angle(catalogue.write(STUFFED), first) == pytest.approx(CAP, abs=0.01)


# --- the actor ------------------------------------------------------------------------------------------------


def test_the_actor_holds_back_and_says_so(broker, tmp_path):
    kafka = KafkaSettings(bootstrap_servers=broker, items_topic=f"items-{uuid.uuid4().hex[:6]}")
    ensure_topics(kafka)
    encoder, producer = BagEncoder(), make_producer(kafka)
    with closing(CatalogReader(tmp_path)) as reader:
        actor = Cataloguer(kafka, tmp_path, lambda: encoder, GUARD)

        def publish(title):
            value = json.dumps({"item_id": "a", "title": title}).encode()
            producer.send(kafka.items_topic, value, key=b"a")
            producer.flush(timeout=10)
            deadline = time.monotonic() + 20
            while (
                reader.snapshot().titles != [title] or not reader.snapshot().of_encoder("bag").encoded.all()
            ):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            return reader.snapshot().vectors[0]

        first = publish(HONEST)
        assert actor.status().held_back == 0
        assert angle(publish(STUFFED), first) == pytest.approx(CAP, abs=0.01)
        assert actor.status().held_back == 1
        actor.stop()
    producer.close()
