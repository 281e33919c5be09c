"""The Event contract: what is accepted, and what a person reads about what is not."""

import json

import pytest

from streaming.config import FieldPaths, StreamingSettings
from streaming.events import EventDecoder
from streaming.hashing import hash_one

GOOD = {
    "event_id": "e1",
    "user_id": "ann",
    "item_id": "film",
    "type": "click",
    "timestamp": 1_700_000_000_000,
}


def encode(**changes):
    return json.dumps({key: value for key, value in (GOOD | changes).items() if value != "(absent)"}).encode()


def decode(*values, **settings):
    return EventDecoder(StreamingSettings(**settings)).decode(values)


def test_a_good_event_becomes_a_row_of_columns():
    events, rejected = decode(encode(context={"page": {"deep": [1]}}, value=2.5))
    assert rejected == []
    assert events.user.tolist() == [hash_one("ann")]
    assert events.item.tolist() == [hash_one("film")]
    assert events.event_id.tolist() == [hash_one("e1")]
    assert events.time_ms.tolist() == [1_700_000_000_000]
    assert events.type.tolist() == [1]


@pytest.mark.parametrize(
    "timestamp",
    ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20+01:00", "2023-11-14T22:13:20", 1_700_000_000_000.0],
)
def test_times_may_be_iso_8601_or_milliseconds(timestamp):
    events, rejected = decode(encode(timestamp=timestamp), encode())
    assert rejected == []
    assert events.time_ms.tolist() == [1_700_000_000_000] * 2


def test_numbers_are_fine_as_ids():
    events, rejected = decode(encode(user_id=7, item_id=8), encode(user_id="7", item_id="8"))
    assert rejected == []
    assert events.user[0] == events.user[1] == hash_one("7")


BAD = {
    "no value": (None, "expected a JSON object, got nothing"),
    "an array": (b"[1]", "expected a JSON object"),
    "cut short": (b'{"user_id": 1', "not JSON"),
    "two objects": (encode() + encode(), "not JSON: Extra data"),
    "invalid UTF-8": (b'{"user_id": "\xff", "item_id": "a"}', "not UTF-8"),
    "half a surrogate": (encode().replace(b"ann", b"\\ud800"), "field user_id: holds half a surrogate"),
    "a raw NUL": (encode().replace(b"ann", b"\x00"), "not JSON: Invalid control character"),
    "missing user": (encode(user_id="(absent)"), "field user_id: missing or null"),
    "null item": (encode(item_id=None), "field item_id: missing or null"),
    "empty item": (encode(item_id=""), "field item_id: empty"),
    "object as user": (encode(user_id={"id": 1}), "field user_id: expected a string"),
    "bool as user": (encode(user_id=True), "field user_id: expected a string, got True"),
    "64k id": (encode(user_id="x" * 65536), "field user_id: longer than 512 characters"),
    "unknown type": (encode(type="zap"), "field type: expected one of view, click"),
    "no time": (encode(timestamp="yesterday"), "field timestamp: expected epoch milliseconds or an ISO 8601"),
    "far future": (encode(timestamp=99_999_999_999_999), "field timestamp: later than"),
    "endless number": (encode(timestamp=10**30), "field timestamp: expected epoch"),
    "deep nesting": (b'{"user_id":' * 50_000 + b"1" + b"}" * 50_000, "not JSON"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_with_a_reason_and_its_neighbours_pass(name):
    value, reason = BAD[name]
    events, rejected = decode(encode(event_id="before"), value, encode(event_id="after"))
    assert events.record.tolist() == [0, 2]
    assert [reject.record for reject in rejected] == [1]
    assert reason in rejected[0].reason


def test_every_record_is_either_an_event_or_refused_and_order_is_kept():
    values = [encode(event_id=f"e{i}") if i % 7 else b"nonsense" for i in range(500)]
    events, rejected = decode(*values)
    assert sorted([*events.record.tolist(), *(reject.record for reject in rejected)]) == list(range(500))
    assert len(rejected) == 72


def test_fields_are_found_where_the_settings_say():
    fields = FieldPaths(event_id=None, user_id="payload.customer.id", item_id="payload.sku", timestamp="at")
    record = {"payload": {"customer": {"id": 12}, "sku": "a"}, "type": "view", "at": "2024-01-01T00:00:00Z"}
    events, rejected = decode(json.dumps(record).encode(), b'{"payload": {"sku": "a"}}', fields=fields)
    assert events.user.tolist() == [hash_one("12")]
    assert events.event_id.tolist() == [0]
    assert rejected[0].reason == "field payload.customer.id: missing or null"
