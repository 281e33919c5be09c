"""`headrace inspect`: what is in a topic, and which mapping suits it, on the real broker."""

import json
import tomllib
import uuid
from datetime import UTC, datetime

import pytest
import typer
from typer.testing import CliRunner

from services.commands.inspect import inspect
from services.inspection import framing_of
from services.settings import load_settings
from streaming.config import Source
from streaming.events import EventDecoder
from streaming.kafka import ensure_topics, make_consumer, make_producer, topic_partitions

TIME_MS = 1_763_805_600_000
GOOD = {"event_id": "e", "user_id": "ann", "item_id": "film", "type": "view", "timestamp": TIME_MS}

app = typer.Typer()
app.command()(inspect)


@pytest.fixture
def name():
    return f"look-{uuid.uuid4().hex[:6]}"


@pytest.fixture
def config(broker, tmp_path, name):
    file = tmp_path / "headrace.toml"
    file.write_text(
        f'[kafka]\nbootstrap_servers = "{broker}"\npartitions = 3\n'
        f'dead_letter_topic = "{name}.dead"\nitems_topic = "{name}.items"\n'
        f'[[streaming.sources]]\ntopic = "{name}"\n'
    )
    ensure_topics(load_settings(file).kafka, [name, f"{name}-foreign"])
    return file


def produce(config, topic, *values, **options):
    producer = make_producer(load_settings(config).kafka)
    for value in values:
        data = json.dumps(value).encode() if isinstance(value, dict) else value
        producer.send(topic, data, key=b"ann", **options).get(10)
    producer.close(timeout=5)


def run(config, topic, *arguments, code=0, columns=120):
    arguments = ["--topic", topic, "--settings", str(config), *arguments]
    result = CliRunner(env={"COLUMNS": str(columns)}).invoke(app, arguments)
    assert result.exit_code == code, result.output
    return result.output


def shop_event(number):
    action = ["product_view", "add_to_cart", "order_completed"][number % 3]
    return {
        "meta": {"at": "2025-11-22T10:00:00Z", "id": f"m{number}"},
        "customer": {"id": f"c{number % 7}"},
        "action": action,
        "product": {"sku": f"s{number % 9}", "price": 2.5},
    }


def test_a_mapping_that_accepts_all_needs_no_change(config, name):
    produce(config, name, *(GOOD | {"event_id": f"e{number}", "value": 2.5} for number in range(5)))
    output = run(config, name)
    assert "5 records in 3 partitions" in output
    assert "5 of 5 accepted (100.0%)" in output
    assert "no change is needed" in output
    assert "suggested" not in output
    row = next(line for line in output.splitlines() if line.startswith("ann"))
    assert row.split() == ["ann", "film", "view", "2025-11-22T10:00:00Z", "2.5", "—"]


def test_a_foreign_topic_gets_a_mapping_to_paste_that_works(config, name):
    topic = f"{name}-foreign"
    events = [shop_event(number) for number in range(40)]
    produce(config, topic, *events)
    output = run(config, topic)
    assert f"{topic} is not among streaming.sources ({name})" in output
    assert "40 of 40 accepted (100.0%)" in output
    config.write_text(config.read_text() + output[output.index("[[streaming.sources]]") :])
    settings = load_settings(config)
    source = settings.streaming.sources[1]
    decoded, rejected = EventDecoder(settings.streaming, source).decode(
        [json.dumps(event).encode() for event in events]
    )
    assert (source.topic, len(decoded), rejected) == (topic, 40, [])
    assert "no change is needed" in run(config, topic)


def test_what_is_refused_is_counted_by_cause(config, name):
    produce(config, name, GOOD, GOOD | {"type": "look"}, GOOD | {"type": "peek"}, b"oops")
    output = run(config, name)
    assert "1 of 4 accepted (25.0%)" in output
    assert "✘ 2 field type: expected one of view" in output
    assert "✘ 1 expected a JSON object, got b'oops'" in output


def test_where_no_mapping_helps_none_is_suggested(config, name):
    produce(config, name, *[GOOD | {"event_id": f"e{number}"} for number in range(9)], b"oops")
    output = run(config, name)
    assert "No other mapping accepts more" in output
    assert "[[streaming.sources]]" not in output


def test_what_the_mapping_leaves_unused_is_named(config, name):
    produce(config, name, *(GOOD | {"event_id": f"e{number}", "price": 2.5} for number in range(5)))
    assert "value could be 'price'" in run(config, name)


def test_only_the_newest_records_are_looked_at(config, name):
    produce(config, name, *[b"old"] * 30, partition=0)
    produce(config, name, *[GOOD] * 10, partition=0)
    produce(config, name, *[GOOD] * 4, partition=1)
    output = run(config, name, "--sample", "14")
    assert "14 of 14 accepted" in output
    rows = [line.split()[:3] for line in output.splitlines() if line.strip()[:1].isdigit()]
    assert rows[:3] == [["0", "0", "40"], ["1", "0", "4"], ["2", "0", "0"]]


def test_an_unknown_topic_names_the_nearest(config, name):
    assert f"did you mean {name}" in " ".join(run(config, name.replace("look", "lok"), code=1).split())


def test_an_empty_topic_says_so(config, name):
    assert "The topic is empty" in run(config, name)


def test_tombstones_are_counted_apart(config, name):
    produce(config, name, GOOD, None)
    assert "1 without a value" in run(config, name)


def test_confluent_frames_are_told_from_their_first_bytes(config, name):
    topic = f"{name}-foreign"
    produce(config, topic, *[b"\0" + (17).to_bytes(4, "big") + b"\x06ann"] * 5)
    output = " ".join(run(config, topic).split())
    assert "It looks like Confluent Avro (a zero byte, then schema id 17)" in output
    assert 'format = "avro" and avro.registry_url' in output
    assert "streaming.sources]]" not in output


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\0\0\0\0\x05{}", "JSON in Confluent's frame"),
        (b"Obj\x01...", "whole Avro files"),
        (b"\x1f\x8b...", "gzip"),
        (b'[{"a": 1}]', "JSON arrays"),
    ],
)
def test_other_formats_are_named(value, said):
    assert said in framing_of([value, value, b"{}"])
    assert framing_of([value, b"{}", b"{}"]) is None


def test_a_topic_in_avro_is_read_by_its_schema(config, name, tmp_path):
    fastavro = pytest.importorskip("fastavro")
    import io

    fields = [
        {"name": "uid", "type": "string"},
        {"name": "product_id", "type": "long"},
        {"name": "action", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
    ]
    schema = {"type": "record", "name": "Event", "fields": fields}
    (tmp_path / "event.avsc").write_text(json.dumps(schema))
    values = []
    for number in range(30):
        data = io.BytesIO()
        moment = datetime(2025, 11, 22, 10, 0, number, tzinfo=UTC)
        record = {"uid": f"u{number % 5}", "product_id": number, "action": "buy", "at": moment}
        fastavro.schemaless_writer(data, schema, record)
        values.append(data.getvalue())
    produce(config, name, *values)
    config.write_text(
        config.read_text()
        + f'format = "avro"\n[streaming.sources.avro]\nschema_file = "{tmp_path / "event.avsc"}"\n'
    )
    output = run(config, name)
    assert "30 of 30 accepted" in output
    (pasted,) = tomllib.loads(output[output.index("[[streaming.sources]]") :])["streaming"]["sources"]
    source = Source(**pasted)
    assert (source.fields.user_id, source.fields.item_id, source.fields.type, source.fields.timestamp) == (
        "uid", "product_id", "action", "at",
    )  # fmt: skip
    assert source.types == {"buy": "purchase"}


def test_records_print_without_harm_at_any_width(config, name):
    produce(config, name, *[GOOD | {"user_id": "\x1b]0;owned\x07", "x\x1b[2J": "\x9b31m"}] * 3)
    for columns in (40, 80, 200):
        output = run(config, name, columns=columns)
        assert all(line.isprintable() for line in output.splitlines())


def test_nothing_is_committed(config, name):
    produce(config, name, GOOD)
    run(config, name)
    consumer = make_consumer(load_settings(config).kafka)
    assert [consumer.committed(part) for part in topic_partitions(name, [0, 1, 2])] == [None] * 3
    consumer.close(autocommit=False)


def test_avro_without_a_schema_is_a_readable_error(config, name):
    produce(config, name, GOOD)
    output = run(config, name, "--format", "avro", code=1)
    assert "schema_file" in output
    assert "Traceback" not in output
