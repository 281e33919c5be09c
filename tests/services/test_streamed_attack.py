"""Fake users planned from what a system has stored, and sent to its topic in the shape that it reads."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from services.commands.attack import app
from services.settings import Settings, make_settings
from services.streamed_attack import KINDS, AttackError, Order, plan, send
from services.topic_reader import TopicReader
from streaming.catalog import CatalogStore, Item
from streaming.events import EventDecoder
from streaming.hashing import hash_one, stable_hash
from streaming.kafka import ensure_topics, make_producer
from streaming.state import open_store
from streaming.windows import SCHEMA, write_shard
from tests.streaming.oracle import Event, make_batch

HOUR = 3_600_000
MONDAY = 1_760_313_600_000
ITEMS = [f"i{number}" for number in range(40)]
USERS = [f"user-{number:04d}" for number in range(60)]


def window(number: int) -> pa.Table:
    """What 40 people did in an hour: three to eight items each, the first ones most often."""
    rng = np.random.default_rng(number)
    share = 1.0 / (1 + np.arange(len(ITEMS)))
    rows = []
    for user in sorted(stable_hash(rng.choice(USERS, 40, replace=False).tolist()).tolist()):
        count = int(rng.integers(3, 9))
        items = rng.choice(ITEMS, count, replace=False, p=share / share.sum()).tolist()
        times = MONDAY + number * HOUR + np.sort(rng.integers(0, HOUR, count))
        row = {"user": user, "items": stable_hash(items).tolist(), "times": times.tolist()}
        rows.append(row | {"types": [1] * count, "target_from": 0, "trust": 1.0})
    return pa.Table.from_pylist(rows, schema=SCHEMA)


@pytest.fixture
def values(tmp_path: Path, broker: str, request: pytest.FixtureRequest) -> dict[str, object]:
    """Settings of a system whose topic nests its fields and names its types otherwise."""
    name = request.node.name.replace("[", ".").rstrip("]")
    fields = {"user_id": "payload.customer", "item_id": "payload.sku", "type": "kind", "timestamp": "at"}
    return {
        "data_dir": str(tmp_path / "data"),
        "kafka": {
            "bootstrap_servers": broker,
            "items_topic": f"{name}.items",
            "dead_letter_topic": f"{name}.dead",
        },
        "streaming": {
            "sources": [{"topic": f"{name}.events", "fields": fields, "types": {"pdp": "click"}}],
            "logical_shards": 1,
            "map_size_gib": 0.05,
        },
    }


@pytest.fixture
def settings(values: dict[str, object]) -> Settings:
    """Three closed hours, the fourth open since ten past; a catalogue; records in the topic."""
    made = make_settings(values)
    catalog = CatalogStore(made.data_dir / "catalog", 0.05)
    catalog.apply([(item, Item(item_id=item, title=f"Thing {item}")) for item in ITEMS], 0, 0)
    catalog.close()
    newest = Event(hash_one(USERS[0]), hash_one("i1"), 1, MONDAY + 3 * HOUR + 600_000, offset=0)
    with open_store(made.data_dir / "state", made.data_dir / "windows", 0, made.streaming) as store:
        store.apply(make_batch([newest], [MONDAY + 3 * HOUR]))
    for number in range(3):
        write_shard(made.data_dir / "windows", MONDAY + number * HOUR, 0, window(number))
    ensure_topics(made.kafka, [made.streaming.events_topic])
    producer = make_producer(made.kafka)
    for user in USERS[:30]:
        record = {"event_id": user, "payload": {"customer": user, "sku": "i1"}, "kind": "pdp", "at": MONDAY}
        producer.send(made.streaming.events_topic, json.dumps(record).encode(), key=user.encode())
    producer.flush(timeout=20)
    producer.close()
    return made


def records(settings: Settings) -> list[Any]:
    with TopicReader(settings.kafka, settings.streaming.events_topic) as reader:
        return list(reader.read(reader.everything()))


def test_fake_users_look_like_people_and_act_in_the_open_window(settings: Settings) -> None:
    planned = plan(settings, Order(size=0.2, targets=2, seed=3))
    assert len(planned.users) == len(set(planned.users)) == round(0.2 * planned.honest_users)
    assert all(len(user) == 9 and user.startswith("user-") for user in planned.users)
    assert not set(planned.users) & set(USERS)
    assert planned.windows == ["2025-10-13T03:00:00Z"]
    assert (np.diff(planned.times) >= 0).all()
    assert planned.times[0] >= MONDAY + 3 * HOUR
    assert planned.times[-1] < MONDAY + 4 * HOUR
    events = np.bincount(planned.user)
    assert 3 <= events.min() <= events.max() <= 8  # as busy as people in one window
    for target in planned.targets:
        had = {user for user, item in zip(planned.user.tolist(), planned.item, strict=True) if item == target}
        assert len(had) == len(planned.users)
    assert planned.before == sorted(planned.before) or max(planned.before) < 15  # rare ones


def test_the_same_seed_plans_the_same_attack(settings: Settings) -> None:
    one, other = (plan(settings, Order(seed=5)).report() for _ in range(2))
    assert one == other
    assert plan(settings, Order(seed=6)).report()["fake_users"] != one["fake_users"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_sent_in_the_shape_that_the_source_reads(settings: Settings, kind: str) -> None:
    planned = plan(settings, Order(kind, 0.1, items=("i7", "i30")))
    assert send(settings, planned) == len(planned.times)
    arrived = [record for record in records(settings) if record.key.decode() in set(planned.users)]
    got, rejected = EventDecoder(settings.streaming).decode([record.value for record in arrived])
    assert not rejected
    assert sorted(got.time_ms.tolist()) == planned.times.tolist()
    assert set(got.user.tolist()) == set(stable_hash(planned.users).tolist())
    assert set(got.type.tolist()) == {1}
    assert (np.bincount(np.unique(got.event_id, return_inverse=True)[1]) == 1).all()
    if KINDS[kind].with_targets:
        assert set(stable_hash(["i7", "i30"]).tolist()) <= set(got.item.tolist())


def test_a_span_begins_where_the_stream_is(settings: Settings) -> None:
    planned = plan(settings, Order(span_ms=2 * HOUR))
    assert planned.start_ms == MONDAY + 3 * HOUR + 600_000
    assert planned.windows == [f"2025-10-13T0{hour}:00:00Z" for hour in (3, 4, 5)]
    with pytest.raises(AttackError, match="later events are dead letters"):
        plan(settings, Order(span_ms=1000 * 365 * 24 * HOUR))


def test_what_cannot_be_done_is_said(settings: Settings, values: dict[str, object], tmp_path: Path) -> None:
    with pytest.raises(AttackError, match=r"expected one of random, average, bandwagon.*got 'bandwaggon'"):
        plan(settings, Order("bandwaggon"))
    with pytest.raises(AttackError, match="'gan' trains a model of its own first"):
        plan(settings, Order("gan"))
    with pytest.raises(AttackError, match="has no item 'i77'; did you mean 'i7'"):
        plan(settings, Order(items=("i77",)))
    with pytest.raises(AttackError, match="expected at most"):
        plan(settings, Order(targets=100))
    with pytest.raises(AttackError, match="no window is closed yet in"):
        plan(make_settings(values | {"data_dir": str(tmp_path / "other")}), Order())


def test_the_command_says_whom_it_sent_and_writes_it_down(settings: Settings, tmp_path: Path) -> None:
    config, out = tmp_path / "headrace.toml", tmp_path / "out" / "attack.json"
    [source] = settings.streaming.sources
    fields = ", ".join(
        f'{name} = "{path}"' for name, path in source.fields.model_dump(exclude_none=True).items()
    )
    config.write_text(
        f'data_dir = "{settings.data_dir}"\n[kafka]\nbootstrap_servers = "{settings.kafka.bootstrap_servers}"\n'
        "[streaming]\nlogical_shards = 1\n[[streaming.sources]]\n"
        f'topic = {json.dumps(source.topic)}\nfields = {{ {fields} }}\ntypes = {{ pdp = "click" }}\n'
    )

    def run(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["stream", *arguments, "--settings", str(config)])
        return done.exit_code, " ".join(done.output.split())

    code, told = run("--size", "10%", "--item", "i7", "--out", str(out))
    assert code == 0, told
    report = json.loads(out.read_text())
    assert report["targets"] == [
        {"item_id": "i7", "title": "Thing i7", "events": report["targets"][0]["events"]}
    ]
    assert f"{len(report['fake_users'])} fake users" in told
    assert f"sent {report['events']} events" in told
    assert "Thing i7" in told
    assert "headrace quarantine list" in told
    assert {record.key.decode() for record in records(settings)} >= set(report["fake_users"])
    assert run("--span", "soon")[0] == 2
    assert run("--item", "nothing")[0] == 1
