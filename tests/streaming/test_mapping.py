"""Your events, not ours: what a source's settings make of a record, and which of them are refused."""

import asyncio
import json

import numpy as np
import pytest
from kafka import TopicPartition

from serving.errors import InvalidRequestError, UnavailableError
from serving.models import NewEvent
from serving.ports import KafkaSink
from streaming.config import KafkaSettings, Source, StateSettings, StreamingSettings
from streaming.events import FORGET, NO_CATEGORY, EventDecoder
from streaming.formats.shape import ShapeError
from streaming.hashing import hash_one
from streaming.kafka import ensure_topics, make_consumer

NOW = 1_700_000_100_000
SHOP = Source(
    topic="shop",
    fields={
        "event_id": None,
        "user_id": "payload.customer.id",
        "item_id": "payload.sku",
        "type": "meta.kind",
        "timestamp": "meta.at",
        "value": "payload.price",
        "category": "payload.section",
    },
    types={"product_view": "view", "pv": "view", "bought": "purchase", "bye": "$forget", "like": "click"},
    defaults={"value": "1.5", "category": "other", "timestamp": "$record"},
)
STATE = StateSettings(categories=("shoes", "other", "12"))


def decode(source, *records, times=None, **settings):
    """Decode one by one, and again in columns; both must say the same."""
    decoder = EventDecoder(StreamingSettings(sources=(source,), **settings), clock_ms=lambda: NOW)
    values = [json.dumps(record).encode() for record in records]
    events, rejected = decoder.decode(values, timestamps_ms=times)
    copies = 12
    wide = None if times is None else np.tile(times, copies)
    many, refused = decoder.decode(values * copies, timestamps_ms=wide)
    assert many.user.tolist() == events.user.tolist() * copies
    assert many.value_micro.tolist() == events.value_micro.tolist() * copies
    assert [reject.reason for reject in refused] == [reject.reason for reject in rejected] * copies
    return events, [reject.reason for reject in rejected]


def shop(kind="pv", user=12, **payload):
    return {
        "meta": {"kind": kind, "at": "2023-11-14T22:13:20+00:00"},
        "payload": {"customer": {"id": user}, "sku": "a"} | payload,
    }


def plain(**changes):
    event = {"event_id": "e", "user_id": "u", "item_id": "i", "type": "view", "timestamp": NOW}
    return {key: value for key, value in (event | changes).items() if value is not None}


def test_fields_are_found_where_the_settings_say():
    events, reasons = decode(SHOP, shop(price=20, section="shoes"), shop(section=12), state=STATE)
    assert reasons == []
    assert events.user.tolist() == [hash_one("12")] * 2
    assert events.event_id.tolist() == [0, 0]
    assert events.time_ms.tolist() == [1_700_000_000_000] * 2
    assert events.value_micro.tolist() == [20_000_000, 1_500_000]
    assert events.category.tolist() == [0, 2]


def test_a_reason_names_the_path_in_the_record():
    _, reasons = decode(SHOP, {"payload": {"sku": "a"}}, shop(price="20"), {"payload": 3, "meta": []})
    assert reasons == [
        "field payload.customer.id: missing or null",
        "field payload.price: expected a number, got '20'",
        "field payload.customer.id: missing or null",
    ]


def test_types_are_translated_and_those_not_listed_taken_as_they_are():
    kinds = ["product_view", "pv", "bought", "bye", "cart", "like", "$forget"]
    events, reasons = decode(SHOP, *(shop(kind) for kind in kinds), state=STATE)
    assert reasons == []
    assert events.type.tolist() == [0, 0, 5, FORGET, 4, 1, FORGET]


def test_a_type_that_nothing_is_said_of_is_refused_with_all_that_could_be():
    _, [reason] = decode(SHOP, shop("stroll"))
    assert reason.startswith(
        "field meta.kind: expected one of product_view, pv, bought, bye, like, view, click"
    )
    assert reason.endswith("(settings streaming.event_types and streaming.sources[0].types), got 'stroll'")


def test_a_category_that_is_not_counted_is_none():
    events, _ = decode(SHOP, shop(section="hats"), shop(section=None), state=STATE)
    assert events.category.tolist() == [NO_CATEGORY, 1]
    events, _ = decode(SHOP, shop(section="hats"), shop(section=None))
    assert events.category.tolist() == [NO_CATEGORY] * 2


def test_a_constant_stands_whatever_the_record_holds():
    source = Source(
        constants={"type": "purchase", "item_id": "ticket", "value": "7", "timestamp": str(NOW - 1)}
    )
    events, reasons = decode(source, {"user_id": "u", "item_id": [], "type": 1, "value": "x"}, plain())
    assert reasons == []
    assert events.type.tolist() == [5, 5]
    assert events.item.tolist() == [hash_one("ticket")] * 2
    assert events.value_micro.tolist() == [7_000_000] * 2
    assert events.time_ms.tolist() == [NOW - 1] * 2


def test_a_default_stands_where_the_record_has_nothing_but_not_for_what_is_wrong():
    source = Source(defaults={"user_id": "anonymous", "type": "click", "timestamp": "2023-11-14T22:13:20Z"})
    events, reasons = decode(
        source,
        {"item_id": "i", "user_id": None},
        plain(),
        plain(user_id=""),
        plain(type="x"),
        plain(timestamp="x"),
    )
    assert events.user.tolist() == [hash_one("anonymous"), hash_one("u")]
    assert events.type.tolist() == [1, 0]
    assert events.time_ms.tolist() == [1_700_000_000_000, NOW]
    assert [reason.split(":")[0] for reason in reasons] == ["field user_id", "field type", "field timestamp"]


@pytest.mark.parametrize("kind", ["constants", "defaults"])
def test_the_time_may_be_that_of_the_kafka_record(kind):
    source = Source(**{kind: {"timestamp": "$record"}})
    times = np.array([NOW - 7, NOW - 8, 5])
    events, reasons = decode(
        source, plain(timestamp=None), plain(timestamp=None), plain(timestamp=None), times=times
    )
    assert events.time_ms.tolist() == [NOW - 7, NOW - 8]
    assert reasons[0].startswith("timestamp of the Kafka record: earlier than 1973-11-14")


def test_two_fields_may_stand_in_one_place():
    source = Source(fields={"event_id": "timestamp", "item_id": "value"})
    for moment in (NOW, "2023-11-14T22:15:00Z"):
        events, reasons = decode(source, plain(timestamp=moment, value=3), plain(timestamp=moment, value=4))
        assert reasons == []
        assert events.event_id.tolist() == [hash_one(str(moment))] * 2
        assert events.time_ms.tolist() == [NOW if moment == NOW else 1_700_000_100_000] * 2
        assert events.value_micro.tolist() == [3_000_000, 4_000_000]
    _, [reason] = decode(source, plain(value="x"))
    assert reason == "field value: expected a number, got 'x'"


def test_a_source_of_nothing_but_constants_is_possible():
    source = Source(
        fields={"event_id": None, "value": None},
        constants={"user_id": "u", "item_id": "i", "type": "view", "timestamp": str(NOW)},
    )
    events, reasons = decode(source, {}, {"user_id": 1.5})
    assert (len(events), reasons) == (2, [])


WRONG = {
    "an unknown target": (
        {"types": {"look": "viewed"}},
        r"streaming.sources\[1\].types: 'look': expected one of view, .*purchase, \$forget, got 'viewed'",
    ),
    "an unknown constant type": (
        {"constants": {"type": "look"}},
        r"sources\[1\].constants.type: expected one of",
    ),
    "an unknown default type": (
        {"defaults": {"type": "look"}},
        r"sources\[1\].defaults.type: expected one of",
    ),
    "types beside a constant one": (
        {"constants": {"type": "view"}, "types": {"a": "view"}},
        r"sources\[1\].types has no effect beside streaming.sources\[1\].constants.type",
    ),
    "a default beside a constant": (
        {"constants": {"value": "1"}, "defaults": {"value": "2"}},
        r"sources\[1\].defaults.value has no effect",
    ),
    "one event id for all": (
        {"defaults": {"event_id": "e"}},
        r"defaults.event_id: every event that gets it would",
    ),
    "a time that is none": (
        {"constants": {"timestamp": "noon"}},
        r"sources\[1\].constants.timestamp: expected epoch milliseconds, an ISO 8601 time or '\$record'.*got 'noon'",
    ),
    "a value that is none": (
        {"defaults": {"value": "much"}},
        r"defaults.value: expected a number within .*'much'",
    ),
    "an endless value": ({"constants": {"value": "inf"}}, r"constants.value: expected a number within"),
    "an empty user": ({"defaults": {"user_id": ""}}, r"sources\[1\].defaults.user_id: empty"),
    "an item too long": (
        {"constants": {"item_id": "x" * 513}},
        r"constants.item_id: longer than 512 characters",
    ),
    "a path inside of another": (
        {"fields": {"user_id": "user", "item_id": "user.item"}},
        r"sources\[1\].fields: user_id stands at 'user' and item_id inside of it at 'user.item'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_mapping_that_cannot_work_is_refused_by_the_name_of_the_setting(name):
    changes, message = WRONG[name]
    wrong = Source(topic="wrong", **changes)
    with pytest.raises(ValueError, match=message):
        EventDecoder(StreamingSettings(sources=(Source(), wrong)), wrong)


def test_an_event_type_may_not_be_called_as_the_erasure():
    with pytest.raises(ValueError, match=r"streaming.event_types: '\$forget' is the name of an erasure"):
        EventDecoder(StreamingSettings(event_types=("view", "$forget")))


# --- the way back ----------------------------------------------------------------------------------------

NASTY = [
    Source(),
    SHOP,
    Source(fields={"user_id": "context.user", "type": "context.type", "event_id": "context.at.id"}),
    Source(constants={"type": "purchase", "item_id": "i"}, fields={"value": "context.amount"}),
    Source(types={"view": "click", "click": "view"}, defaults={"user_id": "nobody", "value": "3"}),
    Source(types={"click": "purchase", "klick": "click"}, constants={"timestamp": "$record"}),
]


def sink(source):
    return KafkaSink(KafkaSettings(), source, timeout_s=1, clock_ms=lambda: NOW)


@pytest.mark.parametrize("source", NASTY)
@pytest.mark.parametrize("kind", ["view", "click", "like", "purchase"])
def test_what_the_api_publishes_is_read_back_as_meant(source, kind):
    context = {"user": {"x": 1}, "at": {"noon": True}, "amount": 3.0, "type": "fake"}
    event = NewEvent(
        user_id="ä\u2028", item_id="i", type=kind, timestamp=NOW - 7, value=2.25, context=context
    )
    readable = {source.constants["type"]} if "type" in source.constants else {*source.types.values()}
    taken_as_it_is = "type" not in source.constants and kind not in source.types
    if kind not in readable and not taken_as_it_is:
        with pytest.raises(ShapeError, match="type: "):
            sink(source)._encode(event, "e7")
        return
    record = sink(source)._encode(event, "e7")
    assert "ä".encode() in record
    settings = StreamingSettings(sources=(source,))
    decoder = EventDecoder(settings, clock_ms=lambda: NOW)
    events, rejected = decoder.decode([record], timestamps_ms=np.array([NOW - 7]))
    assert rejected == []
    assert settings.event_types[events.type[0]] == kind
    assert events.user.tolist() == [hash_one("ä\u2028")]
    assert events.item.tolist() == [hash_one("i")]
    assert events.event_id.tolist() == [0 if source is SHOP else hash_one("e7")]
    assert events.time_ms.tolist() == [NOW - 7]
    assert events.value_micro.tolist() == [2_250_000]


def test_the_callers_context_is_kept_beside_what_the_settings_map_into_it():
    event = NewEvent(user_id="u", item_id="i", type="view", context={"at": {"noon": True}, "user": "fake"})
    record = json.loads(sink(NASTY[2])._encode(event, "e7"))
    assert record["context"] == {"at": {"noon": True, "id": "e7"}, "user": "u", "type": "view"}


@pytest.mark.parametrize("source", [*NASTY, Source(types={"$forget": "view"})])
def test_an_erasure_is_read_back_as_one(source):
    found = sink(source)._shape.erasure("ann", "e7", NOW - 3)
    value = None if found is None else json.dumps(found).encode()
    decoder = EventDecoder(StreamingSettings(sources=(source,)), clock_ms=lambda: NOW)
    events, rejected = decoder.decode([value], [b"ann"], np.array([NOW - 3]))
    assert rejected == []
    assert events.type.tolist() == [FORGET]
    assert events.user.tolist() == [hash_one("ann")]
    assert events.time_ms.tolist() == [NOW - 3]
    assert (value is None) == ("type" in source.constants or "$forget" in source.types)


class Broker:
    """Takes records and acknowledges them; the part of a producer that the sink uses."""

    def __init__(self):
        self.sent = []

    def send(self, topic, **record):
        self.sent.append(record)
        return self

    def get(self, timeout):
        return self

    partition, offset = 3, 17


def publish(source, action):
    target = sink(source)
    target._producer = broker = Broker()
    return asyncio.run(action(target)), broker.sent


def test_forgetting_publishes_a_record_keyed_by_the_user():
    done, [record] = publish(SHOP, lambda target: target.forget("änn"))
    assert (done.partition, done.offset) == (3, 17)
    assert record["key"] == "änn".encode()
    assert record["timestamp_ms"] == NOW
    assert json.loads(record["value"]) == {
        "payload": {"customer": {"id": "änn"}},
        "meta": {"kind": "bye", "at": NOW},
    }


@pytest.mark.parametrize("source", [Source(constants={"type": "view"}), Source(format="avro")])
def test_where_no_record_can_ask_to_forget_a_tombstone_does(source):
    _, [record] = publish(source, lambda target: target.forget("ann"))
    assert record == {"key": b"ann", "value": None, "timestamp_ms": NOW, "headers": []}


def test_an_event_that_the_topic_cannot_hold_is_refused_and_none_is_published():
    good, wrong = (NewEvent(user_id="u", item_id="i", type=kind) for kind in ("purchase", "view"))
    target = sink(Source(constants={"type": "purchase"}))
    target._producer = broker = Broker()
    with pytest.raises(
        InvalidRequestError, match=r"/events/1/type: every event of topic 'events' has 'purchase'"
    ):
        asyncio.run(target.produce([good, wrong]))
    assert broker.sent == []


def test_nothing_is_published_to_an_avro_topic():
    event = NewEvent(user_id="u", item_id="i", type="view")
    with pytest.raises(
        UnavailableError, match="topic 'events' holds avro records, which the API does not write"
    ):
        asyncio.run(sink(Source(format="avro")).produce([event]))


def test_events_and_erasures_arrive_as_meant_through_a_real_broker(broker):
    kafka = KafkaSettings(bootstrap_servers=broker, partitions=1)
    source = Source(topic="mapped", constants={"timestamp": "$record", "type": "view"})
    ensure_topics(kafka, ["mapped"])
    target = KafkaSink(kafka, source, timeout_s=15, clock_ms=lambda: NOW)
    event = NewEvent(user_id="ann", item_id="i", type="view", timestamp=NOW - 60_000)
    asyncio.run(target.produce([event]))
    asyncio.run(target.forget("ann"))
    target.close()

    consumer = make_consumer(kafka)
    consumer.assign([TopicPartition("mapped", 0)])
    consumer.seek(TopicPartition("mapped", 0), 0)
    records = []
    for _ in range(100):
        records += [record for batch in consumer.poll(timeout_ms=200).values() for record in batch]
        if len(records) >= 2:
            break
    consumer.close()
    decoder = EventDecoder(StreamingSettings(sources=(source,)), clock_ms=lambda: NOW)
    events, rejected = decoder.decode(
        [record.value for record in records],
        [record.key for record in records],
        np.array([record.timestamp for record in records]),
    )
    assert rejected == []
    assert events.type.tolist() == [0, FORGET]
    assert events.time_ms.tolist() == [NOW - 60_000, NOW]
    assert set(events.user.tolist()) == {hash_one("ann")}
