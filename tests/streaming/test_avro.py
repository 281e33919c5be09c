"""Avro sources: a schema by file or from a registry, and the difference between a bad record and a bad day."""

import base64
import io
import json
import socket
import sys
import threading
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from uuid import UUID

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from streaming.config import AvroSettings, Source, StateSettings, StreamingSettings
from streaming.errors import BrokerError
from streaming.events import FORGET, EventDecoder
from streaming.formats.columns import RAW
from streaming.hashing import hash_one

fastavro = pytest.importorskip("fastavro")

NOW = 1_700_000_100_000
MILLIS = {"type": "long", "logicalType": "timestamp-millis"}
CUSTOMER = {"type": "record", "name": "Customer", "fields": [{"name": "id", "type": ["string", "long"]}]}
SCHEMA = {
    "type": "record",
    "name": "Event",
    "namespace": "shop",
    "fields": [
        {"name": "id", "type": {"type": "string", "logicalType": "uuid"}},
        {"name": "customer", "type": ["null", CUSTOMER]},
        {"name": "sku", "type": ["null", "string", "double"]},
        {
            "name": "kind",
            "type": {"type": "enum", "name": "Kind", "symbols": ["look", "purchase", "bye", "zap"]},
        },
        {"name": "at", "type": ["null", MILLIS, "string"]},
        {
            "name": "price",
            "type": ["null", "double", {"type": "bytes", "logicalType": "decimal", "precision": 9}],
        },
        {"name": "tags", "type": {"type": "array", "items": "string"}, "default": []},
    ],
}
FIELDS = {
    "event_id": "id",
    "user_id": "customer.id",
    "item_id": "sku",
    "type": "kind",
    "timestamp": "at",
    "value": "price",
    "category": "kind",
}
ID = UUID("eb9ad6f9-2753-4506-9f09-b700169e8ce5")
GOOD = {
    "id": ID,
    "customer": {"id": "ann"},
    "sku": "film",
    "kind": "look",
    "at": datetime(2023, 11, 14, 22, 13, 20, 5000, tzinfo=UTC),
    "price": 2.5,
    "tags": ["a"],
}


def encode(schema=SCHEMA, header=b"", **changes):
    body = io.BytesIO()
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(json.dumps(schema))), GOOD | changes)
    return header + body.getvalue()


def decoder(avro, **changes):
    source = Source(
        format="avro", fields=FIELDS, types={"look": "view", "bye": "$forget"}, avro=avro, **changes
    )
    state = StateSettings(categories=("purchase", "look"))
    return EventDecoder(StreamingSettings(sources=(source,), state=state), clock_ms=lambda: NOW)


@pytest.fixture
def by_file(tmp_path):
    path = tmp_path / "event.avsc"
    path.write_text(json.dumps(SCHEMA))
    return AvroSettings(schema_file=path)


def test_a_record_becomes_an_event_through_the_same_paths(by_file):
    events, rejected = decoder(by_file).decode(
        [encode(), encode(customer={"id": 12}, price=None, kind="purchase")]
    )
    assert rejected == []
    assert events.user.tolist() == [hash_one("ann"), hash_one("12")]
    assert events.item.tolist() == [hash_one("film")] * 2
    assert events.event_id.tolist() == [hash_one(str(ID))] * 2
    assert events.time_ms.tolist() == [1_700_000_000_005] * 2
    assert events.type.tolist() == [0, 5]
    assert events.value_micro.tolist() == [2_500_000, 0]
    assert events.category.tolist() == [1, 0]


def test_times_may_be_text_and_values_decimals(by_file):
    values = [encode(at="2023-11-14T22:13:20Z"), encode(), encode(at="2023-11-14T23:13:20.005+01:00")]
    events, rejected = decoder(by_file).decode([*values, encode(price=Decimal(7))])
    assert rejected == []
    assert events.time_ms.tolist() == [1_700_000_000_000, *[1_700_000_000_005] * 3]
    assert events.value_micro.tolist() == [2_500_000] * 3 + [7_000_000]


def test_erasures_come_as_records_and_as_tombstones(by_file):
    values = [encode(kind="bye", sku=None), None, encode()]
    events, rejected = decoder(by_file).decode(values, [None, b"bob", None], np.full(3, NOW))
    assert rejected == []
    assert events.type.tolist() == [FORGET, FORGET, 0]
    assert events.user.tolist() == [hash_one(name) for name in ("ann", "bob", "ann")]
    assert events.item.tolist() == [0, 0, hash_one("film")]


BAD = {
    "empty": (b"", "not Avro of its schema"),
    "cut short": (encode()[:-12], "not Avro of its schema"),
    "too long": (encode() + b"\0\0", "not Avro of its schema: 2 bytes follow its end"),
    "no UTF-8": (encode().replace(b"ann", b"a\xff\xff"), "not Avro of its schema: UnicodeDecodeError"),
    "no such branch": (encode().replace(b"\x02\x00\x06ann", b"\x7f\x00\x06ann"), "not Avro of its schema"),
    "no customer": (encode(customer=None), "field customer.id: missing or null"),
    "a float as item": (encode(sku=1.5), "field sku: expected a string or an integer, got 1.5"),
    "a NUL": (encode(customer={"id": "a\0"}), "field customer.id: holds a NUL character"),
    "an unknown type": (encode(kind="zap"), "field kind: expected one of look, bye, view"),
    "a far time": (
        encode(at=datetime(2033, 1, 1, tzinfo=UTC)),
        "field at: later than 2023-11-15T22:15:00+00:00",
    ),
    "an endless value": (encode(price=float("inf")), "field price: expected a finite number"),
    "large": (encode(sku="x" * 2_000_000), "larger than 1048576 bytes"),
    "JSON": (b'{"id": "a"}', "not Avro of its schema"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_with_a_reason_and_its_neighbours_pass(by_file, name):
    value, reason = BAD[name]
    events, rejected = decoder(by_file).decode([encode(), value, encode()])
    assert events.record.tolist() == [0, 2]
    assert [reject.record for reject in rejected] == [1]
    assert reason in rejected[0].reason
    assert "object at" not in rejected[0].reason  # no addresses: one reason is one text


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=3), st.integers(0, 200), st.booleans()) | st.binary(max_size=40),
        max_size=12,
    )
)
def test_whatever_comes_each_record_fares_as_it_would_alone(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "event.avsc"
    path.write_text(json.dumps(SCHEMA))
    good, decoding = encode(), decoder(AvroSettings(schema_file=path))
    batch = [good]
    for change in changes:
        if isinstance(change, bytes):
            batch.append(change)
        else:
            junk, at, cut = change
            batch.append(good[: at % len(good)] + junk + (b"" if cut else good[at % len(good) + len(junk) :]))
    events, rejected = decoding.decode(batch)
    assert sorted([*events.record.tolist(), *(reject.record for reject in rejected)]) == list(
        range(len(batch))
    )
    reasons = {reject.record: reject.reason for reject in rejected}
    for place, value in enumerate(batch):
        alone, refused = decoding.decode([value])
        assert [reject.reason for reject in refused] == ([reasons[place]] if place in reasons else [])
        assert alone.time_ms.tolist() == events.time_ms[events.record == place].tolist()


subjects = st.fixed_dictionaries(
    {},
    optional={
        "customer": st.none()
        | st.fixed_dictionaries({"id": st.text(max_size=3) | st.integers(-9, 2**63 - 1)}),
        "sku": st.none() | st.text(max_size=3) | st.floats(),
        "kind": st.sampled_from(["look", "purchase", "bye", "zap"]),
        "at": st.none()
        | st.datetimes(datetime(1969, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC))
        | st.sampled_from(["2023-11-14T22:13:20Z", "2023-11-14", "now"]),
        "price": st.none() | st.floats() | st.decimals(0, 1000, places=0),
    },
)


@settings(max_examples=100, deadline=None)
@given(st.lists(subjects, min_size=1, max_size=10))
def test_records_fare_alike_in_columns_and_one_by_one(tmp_path_factory, changes):
    path = tmp_path_factory.getbasetemp() / "event.avsc"
    path.write_text(json.dumps(SCHEMA))
    values = [encode(**change) for change in changes]
    together, single = (decoder(AvroSettings(schema_file=path)) for _ in range(2))
    single._reader.read = lambda values: (RAW.empty_table(), list(range(len(values))))
    (events, rejected), (expected, refused) = together.decode(values), single.decode(values)
    assert rejected == refused
    for name in vars(expected):
        assert getattr(events, name).tolist() == getattr(expected, name).tolist(), name


def wrong_settings(tmp_path, text):
    path = tmp_path / "wrong.avsc"
    path.write_text(text)
    return AvroSettings(schema_file=path)


HOSTILE = {
    "itself": ({"type": "record", "name": "N", "fields": [{"name": "next", "type": ["null", "N"]}]}, "itself"),
    "itself, further down": (
        {
            "type": "record",
            "name": "A",
            "fields": [
                {"name": "b", "type": {"type": "record", "name": "B", "fields": [
                    {"name": "as", "type": {"type": "map", "values": ["null", "A"]}}]}},
            ],
        },
        "it contains itself",
    ),
    "free items": (
        {"type": "record", "name": "A", "fields": [{"name": "x", "type": {"type": "array", "items": "null"}}]},
        "an array of items that take no bytes",
    ),
    "free records": (
        {"type": "array", "items": {"type": "record", "name": "Z", "fields": [{"name": "n", "type": "null"}]}},
        "an array of items that take no bytes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_that_lets_a_record_crash_the_reader_is_refused_at_start(tmp_path, name):
    schema, reason = HOSTILE[name]
    with pytest.raises(ValueError, match=f"sources\\[0\\].avro.schema_file: .*wrong.avsc: .*{reason}"):
        decoder(wrong_settings(tmp_path, json.dumps(schema)))


def test_a_type_used_twice_is_not_one_that_contains_itself(tmp_path):
    twice = {
        "type": "record",
        "name": "Two",
        "fields": [
            {"name": "a", "type": CUSTOMER},
            {"name": "b", "type": {"type": "array", "items": "Customer"}},
        ],
    }
    decoder(wrong_settings(tmp_path, json.dumps(twice)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [("{", "Expecting"), ('{"type": "sausage"}', "not an Avro schema"), ("17", "not an Avro schema")],
)
def test_a_schema_that_is_none_is_refused_at_start(tmp_path, text, reason):
    with pytest.raises(ValueError, match=f"schema_file: .*wrong.avsc: .*{reason}"):
        decoder(wrong_settings(tmp_path, text))


@pytest.mark.parametrize(
    ("avro", "message"),
    [
        (
            AvroSettings(),
            r"sources\[0\].avro: expected one of schema_file and registry_url, got both or neither",
        ),
        (AvroSettings(schema_file="/nowhere/x.avsc"), r"schema_file: /nowhere/x.avsc: .*No such file"),
        (AvroSettings(registry_url="registry:8081"), r"avro.registry_url: expected http\(s\)://host:port"),
    ],
)
def test_settings_that_name_no_schema_are_refused_at_start(avro, message):
    with pytest.raises(ValueError, match=message):
        decoder(avro)


def test_without_fastavro_a_person_is_told_what_to_install(monkeypatch, by_file):
    monkeypatch.setitem(sys.modules, "fastavro", None)
    with pytest.raises(
        ValueError, match=r"sources\[0\].format: 'avro' needs .* pip install 'headrace\[avro\]'"
    ):
        decoder(by_file)


# --- with a registry -------------------------------------------------------------------------------------

NAMED = {
    "type": "record",
    "name": "Named",
    "namespace": "shop",
    "fields": [{"name": "customer", "type": "Customer"}],
}


class Registry(ThreadingHTTPServer):
    """Speaks the part of Confluent's API that readers use."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.asked = []
        self.password = None
        self.broken = False
        self.answers = {
            "/schemas/ids/7": {"schema": json.dumps(SCHEMA)},
            "/schemas/ids/8": {"schema": "syntax = 'proto3';", "schemaType": "PROTOBUF"},
            "/schemas/ids/9": {"schema": json.dumps(HOSTILE["itself"][0])},
            "/schemas/ids/10": {
                "schema": json.dumps(NAMED | {"fields": [*NAMED["fields"], *SCHEMA["fields"][2:]]}),
                "references": [{"name": "shop.Customer", "subject": "shop/customer", "version": 3}],
            },
            "/subjects/shop%2Fcustomer/versions/3": {"schema": json.dumps(CUSTOMER | {"namespace": "shop"})},
        }

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Answer(BaseHTTPRequestHandler):
    def do_GET(self):
        registry = self.server
        registry.asked.append(self.path)
        if registry.broken:
            return self.say(500, {"error_code": 50001})
        if registry.password is not None:
            expected = "Basic " + base64.b64encode(f"reader:{registry.password}".encode()).decode()
            if self.headers.get("Authorization") != expected:
                return self.say(401, {"error_code": 401})
        if not self.path.startswith(("/schemas/", "/subjects/")):
            return self.say(404, {"error_code": 404, "message": "HTTP 404 Not Found"})
        if self.path not in registry.answers:
            return self.say(404, {"error_code": 40403, "message": "Schema not found"})
        return self.say(200, registry.answers[self.path])

    def say(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def registry():
    server = Registry()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join(10)


def wire(number):
    return b"\0" + number.to_bytes(4, "big")


def test_the_schema_that_a_record_names_is_fetched_once(registry):
    decoding = decoder(AvroSettings(registry_url=registry.url + "/"))
    for _ in range(2):
        events, rejected = decoding.decode([encode(header=wire(7))] * 50)
        assert rejected == []
        assert events.user.tolist() == [hash_one("ann")] * 50
    assert registry.asked == ["/schemas/ids/7"]


def test_a_schema_may_refer_to_others(registry):
    record = b"".join([wire(10), encode()[len(encode(CUSTOMER_ID)) + 1 :]])
    events, rejected = decoder(AvroSettings(registry_url=registry.url)).decode([record])
    assert rejected == []
    assert events.user.tolist() == [hash_one("ann")]
    assert registry.asked == ["/schemas/ids/10", "/subjects/shop%2Fcustomer/versions/3"]


CUSTOMER_ID = {
    "type": "record",
    "name": "Id",
    "fields": [SCHEMA["fields"][0]],
}  # what stands before the customer


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (encode(header=wire(404)), "does not know schema 404"),
        (encode(header=wire(8)), "schema 8 is of type PROTOBUF, expected AVRO"),
        (encode(header=wire(9)), "schema 9 cannot be used: it contains itself (N)"),
        (
            encode(),
            r"expected a zero byte and the id of a schema (streaming.sources[0].avro.registry_url is set)",
        ),
        (b"\0\0", "expected a zero byte and the id of a schema"),
        (wire(7), "not Avro of its schema"),
    ],
    ids=["unknown", "not Avro", "hostile", "no header", "half a header", "no body"],
)
def test_a_record_that_names_no_usable_schema_is_refused_and_the_registry_not_asked_again(
    registry, value, reason
):
    decoding = decoder(AvroSettings(registry_url=registry.url))
    for _ in range(2):
        events, rejected = decoding.decode([encode(header=wire(7)), value, value])
        assert events.record.tolist() == [0]
        assert all(reason in reject.reason for reject in rejected)
        assert [reject.record for reject in rejected] == [1, 2]
    assert len(registry.asked) == len(set(registry.asked))


def test_a_registry_that_does_not_answer_is_no_fault_of_the_records(registry):
    decoding = decoder(AvroSettings(registry_url=registry.url))
    registry.broken = True
    with pytest.raises(
        BrokerError, match=r"sources\[0\].avro.registry_url: http://127.0.0.1:\d+ did not .*HTTP 500"
    ):
        decoding.decode([encode(header=wire(7))])
    registry.broken = False
    assert len(decoding.decode([encode(header=wire(7))])[0]) == 1


def test_a_registry_that_is_not_there_is_no_fault_of_the_records():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(BrokerError, match=r"did not give schema 7 \(time-out 10 s\): ConnectError"):
        decoder(AvroSettings(registry_url=f"http://127.0.0.1:{port}")).decode([encode(header=wire(7))])


def test_a_registry_that_is_silent_is_waited_for_only_so_long():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(BrokerError, match=r"did not give schema 7 \(time-out 0.2 s\): ReadTimeout"):
            decoder(AvroSettings(registry_url=url, timeout_s=0.2)).decode([encode(header=wire(7))])


def test_another_servers_not_found_is_not_an_unknown_schema(registry):
    with pytest.raises(BrokerError, match="HTTP 404, which is not what a registry answers"):
        decoder(AvroSettings(registry_url=registry.url + "/apis")).decode([encode(header=wire(7))])
    registry.answers["/schemas/ids/7"] = {"hello": "world"}
    with pytest.raises(BrokerError, match="HTTP 200, which is not what a registry answers"):
        decoder(AvroSettings(registry_url=registry.url)).decode([encode(header=wire(7))])


@pytest.mark.parametrize("in_url", [False, True])
def test_the_registry_may_want_a_password_which_no_message_shows(registry, in_url):
    registry.password = "s3cret"

    def settings_with(password):
        if in_url:
            return AvroSettings(registry_url=registry.url.replace("//", f"//reader:{password}@"))
        return AvroSettings(
            registry_url=registry.url, registry_username="reader", registry_password=SecretStr(password)
        )

    assert len(decoder(settings_with("s3cret")).decode([encode(header=wire(7))])[0]) == 1
    with pytest.raises(BrokerError, match="HTTP 401; check registry_username") as caught:
        decoder(settings_with("wr0ng")).decode([encode(header=wire(7))])
    assert "wr0ng" not in str(caught.value)
