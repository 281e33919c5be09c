"""The Event contract: what is accepted, and what a person reads about what is not."""

import json

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import streaming.formats.jsonlines
from streaming.config import Source, StateSettings, StreamingSettings
from streaming.events import FORGET, NO_CATEGORY, EventDecoder
from streaming.formats.jsonlines import BLOCK
from streaming.hashing import hash_one

NOW = 1_700_000_100_000
GOOD = {
    "event_id": "e1",
    "user_id": "ann",
    "item_id": "film",
    "type": "click",
    "timestamp": 1_700_000_000_000,
}


def encode(**changes):
    return json.dumps({key: value for key, value in (GOOD | changes).items() if value != "(absent)"}).encode()


def decoder(source=None, **changes):
    sources = {} if source is None else {"sources": (source,)}
    return EventDecoder(StreamingSettings(**sources, **changes), clock_ms=lambda: NOW)


def decode(*values, source=None, **changes):
    return decoder(source, **changes).decode(values)


def nested(depth, opening=b"[", closing=b"]"):
    return b'{"context":' + opening * depth + b"1" + closing * depth + b"," + encode()[1:]


def test_a_good_event_becomes_a_row_of_columns():
    events, rejected = decode(encode(context={"page": {"deep": [1]}}, value=2.5))
    assert rejected == []
    assert events.user.tolist() == [hash_one("ann")]
    assert events.item.tolist() == [hash_one("film")]
    assert events.event_id.tolist() == [hash_one("e1")]
    assert events.time_ms.tolist() == [1_700_000_000_000]
    assert events.type.tolist() == [1]
    assert events.value_micro.tolist() == [2_500_000]
    assert events.category.tolist() == [NO_CATEGORY]


@pytest.mark.parametrize("copies", [1, 50])  # one by one, and in columns
class TestForms:
    @pytest.mark.parametrize(
        "timestamp",
        [
            "2023-11-14T22:13:20Z",
            "2023-11-14T23:13:20+01:00",
            "2023-11-14T22:13:20",
            "2023-11-14 22:13:20.0009",
            1_700_000_000_000,
            1_700_000_000_000.0,
        ],
    )
    def test_times_may_be_iso_8601_or_milliseconds(self, timestamp, copies):
        events, rejected = decode(*[encode(timestamp=timestamp), encode()] * copies)
        assert rejected == []
        assert set(events.time_ms.tolist()) == {1_700_000_000_000}

    @pytest.mark.parametrize("number", [7, -7, 2**63 - 1, 2**63, 2**64 - 1, 10**30])
    def test_integers_are_fine_as_ids(self, number, copies):
        values = [encode(user_id=number, item_id=number, event_id=number)] * copies
        events, rejected = decode(*values, encode(user_id=str(number)))
        assert rejected == []
        assert set(events.user.tolist()) == {hash_one(str(number))}
        assert events.item.tolist() == [hash_one(str(number))] * copies + [hash_one("film")]

    @pytest.mark.parametrize("value", [0, 3, -2.5, 1e9, 0.1234567])
    def test_values_are_kept_in_millionths(self, value, copies):
        events, rejected = decode(*[encode(value=value)] * copies, encode(value=None), encode())
        assert rejected == []
        assert events.value_micro.tolist() == [round(value * 1e6)] * copies + [0, 0]

    def test_an_unidentified_event_has_no_event_id(self, copies):
        events, _ = decode(*[encode(event_id=None), encode(event_id="(absent)")] * copies)
        assert set(events.event_id.tolist()) == {0}

    def test_a_byte_order_mark_blanks_and_line_breaks_around_and_between_are_no_part_of_a_record(
        self, copies
    ):
        pretty = json.dumps(GOOD, indent=2).encode()
        events, rejected = decode(*[b"\xef\xbb\xbf" + encode(), pretty, b" \r\n" + encode() + b"\n"] * copies)
        assert rejected == []
        assert set(events.user.tolist()) == {hash_one("ann")}

    def test_what_is_not_asked_for_may_be_anything_that_parses(self, copies):
        odd = b'{"z": [NaN, -Infinity, Inf, 1e999, "\\ud800", {"a": 1, "a": 2}],' + encode()[1:]
        events, rejected = decode(*[odd, nested(199)] * copies)
        assert rejected == []
        assert len(events) == 2 * copies


BAD = {
    "no value": (None, "expected a value, or a key that names the user to forget; got neither"),
    "an empty value": (b"", "expected a JSON object, got b''"),
    "an array": (b"[1]", "expected a JSON object"),
    "a scalar": (b"17", "expected a JSON object, got b'17'"),
    "cut short": (b'{"user_id": 1', "not JSON"),
    "only a beginning": (b'{"user_id": {"a": 1}', "not JSON"),
    "two objects": (encode() + encode(), "not JSON: Extra data"),
    "two objects in two lines": (encode() + b"\n" + encode(), "not JSON: Extra data"),
    "text behind": (encode() + b" {x}", "not JSON: Extra data"),
    "invalid UTF-8": (b'{"user_id": "\xff", "item_id": "a"}', "not UTF-8: invalid start byte at byte 13"),
    "invalid UTF-8 in a name": (encode().replace(b"user_id", b"user\xff"), "not UTF-8"),
    "invalid UTF-8 elsewhere": (b'{"z": "\xc3",' + encode()[1:], "not UTF-8: invalid continuation byte"),
    "half a surrogate": (encode().replace(b"ann", b"\\ud800"), "field user_id: holds half a surrogate"),
    "the other half": (encode().replace(b"film", b"\\udc00"), "field item_id: holds half a surrogate"),
    "a raw NUL": (encode().replace(b"ann", b"\x00"), "not JSON: Invalid control character"),
    "a NUL behind": (encode() + b"\x00}", "not JSON: Extra data"),
    "a NUL in an id": (encode(user_id="a\0b"), r"field user_id: holds a NUL character"),
    "a NUL in an event id": (encode(event_id="a\0b"), r"field event_id: holds a NUL character"),
    "a line break in an id": (encode().replace(b"ann", b"a\nn"), "not JSON: Invalid control character"),
    "missing user": (encode(user_id="(absent)"), "field user_id: missing or null"),
    "null item": (encode(item_id=None), "field item_id: missing or null"),
    "empty item": (encode(item_id=""), "field item_id: empty"),
    "empty event id": (encode(event_id=""), "field event_id: empty"),
    "object as user": (encode(user_id={"id": 1}), "field user_id: expected a string or an integer"),
    "bool as user": (encode(user_id=True), "field user_id: expected a string or an integer, got True"),
    "float as item": (encode(item_id=1.0), "field item_id: expected a string or an integer, got 1.0"),
    "a user given twice": (b'{"user_id": "bob",' + encode()[1:], "field user_id: 'user_id' is given twice"),
    "64k id": (encode(user_id="x" * 65536), "field user_id: longer than 512 characters"),
    "64k event id": (encode(event_id="x" * 65536), "field event_id: longer than 512 characters"),
    "unknown type": (encode(type="zap"), "field type: expected one of view, click"),
    "missing type": (encode(type=None), "field type: missing or null"),
    "no time": (encode(timestamp=None), "field timestamp: missing or null"),
    "a wrong time": (
        encode(timestamp="yesterday"),
        "field timestamp: expected epoch milliseconds or an ISO 8601",
    ),
    "a day of no month": (encode(timestamp="2023-02-30T00:00:00Z"), "field timestamp: expected epoch milli"),
    "digits as text": (encode(timestamp="1700000000000"), "field timestamp: expected epoch milliseconds"),
    "far future": (
        encode(timestamp=99_999_999_999_999),
        "field timestamp: later than 2023-11-15T22:15:00+00:00 (setting streaming.max_future_s), got 99999999999999",
    ),
    "far past": (
        encode(timestamp="1066-10-14T09:00:00Z"),
        "field timestamp: earlier than 1973-11-14T10:15:00+00:00 (setting streaming.max_past_s)",
    ),
    "seconds": (
        encode(timestamp=1_700_000_000),
        "field timestamp: looks like seconds; expected milliseconds",
    ),
    "an endless number": (encode(timestamp=10**30), "field timestamp: expected epoch milliseconds"),
    "ten thousand digits": (
        encode().replace(b"1700000000000", b"9" * 10_000),
        "field timestamp: expected epoch",
    ),
    "a time that is no number": (encode(timestamp=float("nan")), "field timestamp: expected epoch"),
    "a value as text": (encode(value="2.5"), "field value: expected a number, got '2.5'"),
    "a value that is true": (encode(value=True), "field value: expected a number, got True"),
    "an endless value": (
        encode(value=float("inf")),
        "field value: expected a finite number within ±1e+09, got inf",
    ),
    "a value that is no number": (encode(value=float("nan")), "field value: expected a finite number"),
    "a value beyond a double": (
        encode().replace(b"{", b'{"value": 1e999, '),
        "field value: expected a finite",
    ),
    "too much of a value": (encode(value=1.1e9), "field value: expected a finite number within ±1e+09"),
    "10 MB": (
        encode(context="x" * 10_000_000),
        "larger than 1048576 bytes (setting streaming.max_record_bytes)",
    ),
    "deep objects": (b'{"user_id":' * 50_000 + b"1" + b"}" * 50_000, "nested deeper than 200 levels"),
    "deep arrays": (nested(100_000), "nested deeper than 200 levels"),
    "deep and open": (b'{"z":' + b"[" * 1_000_000 + b"}", "nested deeper than 200 levels"),
    "just too deep": (nested(200), "nested deeper than 200 levels"),
}


@pytest.mark.parametrize("company", [1, 30])
@pytest.mark.parametrize("name", BAD)
def test_a_bad_record_is_refused_with_a_reason_and_its_neighbours_pass(name, company):
    value, reason = BAD[name]
    before, after = [encode(event_id="before")] * company, [encode(event_id="after")] * company
    events, rejected = decode(*before, value, *after)
    assert events.record.tolist() == [*range(company), *range(company + 1, 2 * company + 1)]
    assert [reject.record for reject in rejected] == [company]
    assert reason in rejected[0].reason


def test_brackets_in_text_are_not_nesting():
    events, rejected = decode(*[encode(context='[{"' * 2000)] * 20)
    assert rejected == []
    assert len(events) == 20


def test_no_text_takes_long_to_measure():
    """Quadratic time would be a minute here; the time-out of the test would tell."""
    assert decode(b'{"z": "' + b'\\"' * 500_000 + b"[" * 300 + b"}")[1][0].reason.startswith("not JSON")


@pytest.mark.parametrize("text", ["yesterday", "0000-01-01T00:00:00Z", "2023-02-30T00:00:00Z"])
def test_a_time_that_is_none_is_refused_however_wide_the_bounds_are(text):
    values = [encode(timestamp=text), encode(timestamp="0001-01-01T00:00:00Z")]
    events, rejected = decode(*values * 20, max_past_s=1e30)
    assert events.time_ms.tolist() == [-62_135_596_800_000] * 20
    assert {reject.reason for reject in rejected} == {
        f"field timestamp: expected epoch milliseconds or an ISO 8601 time, got {text!r}"
    }


def test_an_empty_batch_is_no_events():
    events, rejected = decode()
    assert (len(events), rejected) == (0, [])


def test_a_batch_of_nothing_but_bad_records_is_no_events():
    events, rejected = decode(*[b"nonsense", b"{}", None] * 100)
    assert len(events) == 0
    assert [reject.record for reject in rejected] == list(range(300))


def test_every_record_is_either_an_event_or_refused_and_order_is_kept():
    values = [encode(event_id=f"e{i}") if i % 7 else b"nonsense" for i in range(500)]
    events, rejected = decode(*values)
    assert events.record.tolist() == [i for i in range(500) if i % 7]
    assert [reject.record for reject in rejected] == [i for i in range(500) if not i % 7]


# --- forgetting ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("company", [0, 30])
def test_a_record_of_type_forget_needs_no_item_and_says_nothing_else(company):
    forget = encode(type="$forget", item_id="(absent)")
    wordy = encode(type="$forget", item_id={"not": "an id"}, value="much", category=[1])
    plain = encode(type="$forget", value=3)
    events, rejected = decode(*[encode()] * company, forget, wordy, plain)
    assert rejected == []
    assert events.type[company:].tolist() == [FORGET] * 3
    assert events.item[company:].tolist() == [0] * 3
    assert events.value_micro[company:].tolist() == [0] * 3
    assert events.user[company:].tolist() == [hash_one("ann")] * 3


def test_a_tombstone_forgets_the_user_whom_its_key_names():
    values, keys = [encode(), None, encode()], [b"x", "änn".encode(), None]
    times = np.array([NOW, NOW - 5, NOW])
    events, rejected = decoder().decode(values, keys, times)
    assert rejected == []
    assert events.type.tolist() == [1, FORGET, 1]
    assert (events.user[1], events.item[1], events.event_id[1]) == (hash_one("änn"), 0, 0)
    assert events.time_ms.tolist() == [GOOD["timestamp"], NOW - 5, GOOD["timestamp"]]


@pytest.mark.parametrize(
    ("key", "time_ms", "reason"),
    [
        (b"\xff", NOW, "key of a tombstone: not UTF-8: invalid start byte at byte 0"),
        (b"", NOW, "key of a tombstone: empty"),
        (b"a\0", NOW, "key of a tombstone: holds a NUL character"),
        (b"x" * 600, NOW, "key of a tombstone: longer than 512 characters"),
        (None, NOW, "got neither"),
        (b"ann", -1, "timestamp of the Kafka record: earlier than 1973"),
    ],
)
def test_a_tombstone_whose_key_names_nobody_is_refused(key, time_ms, reason):
    events, [rejected] = decoder().decode([None], [key], np.array([time_ms]))
    assert len(events) == 0
    assert reason in rejected.reason


# --- whatever comes --------------------------------------------------------------------------------------

SOURCE = Source(
    fields={"user_id": "user.id", "category": "kind", "value": "user.value"},
    types={"look": "view", "gone": "$forget", "click": "like"},
    defaults={"item_id": "none", "category": "film"},
)
STATE = StateSettings(categories=("film", "7"))

text = st.text(max_size=4) | st.sampled_from(["\0", "x" * 600, "view", "look", "gone", "zap", "film", "7"])
times = st.sampled_from(
    [
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20.123456789+05:30",
        "2023-11-14",
        "2023-11-14T22Z",
        "2023-11-14Z",
        "2023-11-14T22:13:20ZZ",
        "2023-11-14T22:13:20+25:00",
        "2023-11-14 22:13:20,5",
        "0000-01-01T00:00:00Z",
        "2023-11-14T22:13:20-0130",
        "2023-11-14T24:00:00Z",
        "20231114T221320Z",
        "2023-W46-2",
        " 2023-11-14T22:13:20",
        "2023-11-14T22:13:20.1234567Z",
        "9999-12-31T23:59:59-23:59",
        "1711111111111",
        "2023-11-14T22:13:20+01",
    ]
)
numbers = (
    st.integers() | st.floats() | st.sampled_from([2**53, 2**53 - 1, 2**63, 2**64, 10**400, 1e9, -0.0, NOW])
)
scalars = st.none() | st.booleans() | text | times | numbers
names = st.sampled_from(["id", "value", "user", "item_id", "type", "kind", "timestamp", "event_id", "z"])
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(names, inner, max_size=3)
)
fields = st.fixed_dictionaries(
    {},
    optional={
        "user": st.fixed_dictionaries({"id": text | numbers}, optional={"value": numbers | scalars}) | values,
        "item_id": text | values,
        "type": st.sampled_from(["view", "look", "gone", "click", "zap"]) | values,
        "timestamp": st.just(NOW) | times | values,
        "event_id": text | values,
        "kind": scalars,
        "z": values,
    },
)
nearly = st.sampled_from([[NOW], [NOW, "2023-11-14T22:13:20Z"]]).flatmap(
    lambda known: st.builds(
        lambda given, moment: (
            {"user": {"id": "u"}, "item_id": "i", "type": "view", "timestamp": moment} | given
        ),
        fields,
        st.sampled_from(known),
    )
)
twisted = st.builds(
    lambda line, at, junk: line[: at % (len(line) + 1)] + junk + line[at % (len(line) + 1) :],
    nearly.map(lambda found: json.dumps(found).encode()),
    st.integers(0, 10_000),
    st.sampled_from(
        [b"\0", b"\n", b"}", b"{", b'"', b"\xff", b"NaN", b"-Inf", b"1", b"\\u0000", b"\\ud800", b"{}"]
    ),
)
records = (
    st.none()
    | st.binary(max_size=12)
    | values.map(lambda found: json.dumps(found).encode())
    | nearly.map(lambda found: json.dumps(found, ensure_ascii=False).encode(errors="surrogatepass"))
    | twisted
)


def outcomes(events, rejected):
    """What became of each record, by its position in the batch."""
    columns = [events.user, events.item, events.event_id, events.time_ms, events.type, events.value_micro]
    rows = zip(*(column.tolist() for column in [*columns, events.category]), strict=True)
    accepted = dict(zip(events.record.tolist(), rows, strict=True))
    refused = {reject.record: reject.reason for reject in rejected}
    assert not accepted.keys() & refused.keys()
    return accepted | refused


@settings(max_examples=150, deadline=None)
@given(st.lists(records, max_size=40))
# as many objects as lines, but not one in each
@example([b'{"user": ', b'{"id": "u"}, "item_id": "i", "type": "view", "timestamp": %d}' % NOW, b"{}{}"])
@example([b'{"user": {"id": {"x": 1}', b'{"a": 1}}', b"{}{}"])
@example([b"{}\0junk}"])
def test_whatever_comes_each_record_fares_as_it_would_alone(batch):
    good = [
        json.dumps({"user": {"id": f"u{i}"}, "item_id": "i", "type": "view", "timestamp": NOW}).encode()
        for i in range(20)
    ]
    batch = [*good[:10], *batch, *good[10:]]
    keys = [b"u" if i % 2 else None for i in range(len(batch))]
    decoding = decoder(SOURCE, state=STATE)
    together = outcomes(*decoding.decode(batch, keys))
    alone = {}
    for place, (value, key) in enumerate(zip(batch, keys, strict=True)):
        found = outcomes(*decoder(SOURCE, state=STATE).decode([value], [key]))
        alone[place] = found[0]
    assert together == alone
    assert len(together) == len(batch)


# --- the price of bad records ----------------------------------------------------------------------------


@pytest.fixture
def work(monkeypatch):
    """Lines given to Arrow's reader, and records given to Python's parser."""
    done = {"lines": 0, "singles": 0}
    read, parse = streaming.formats.jsonlines.pj.read_json, streaming.formats.jsonlines.parse_json

    def counting_read(source, **options):
        done["lines"] += source.getvalue().count(b"\n")
        return read(source, **options)

    def counting_parse(value, max_bytes):
        done["singles"] += 1
        return parse(value, max_bytes)

    monkeypatch.setattr(streaming.formats.jsonlines.pj, "read_json", counting_read)
    monkeypatch.setattr(streaming.formats.jsonlines, "parse_json", counting_parse)
    return done


def many(count):
    return [encode(event_id=f"e{i}") for i in range(count)]


@pytest.mark.parametrize("name", [name for name in BAD if name not in {"10 MB", "deep and open"}])
def test_one_bad_record_in_ten_thousand_costs_little(work, name):
    lines = many(10_000)
    lines[6_500] = BAD[name][0]
    events, rejected = decode(*lines)
    assert (len(events), len(rejected)) == (9_999, 1)
    assert work["lines"] <= 10_000 + 3 * BLOCK
    assert work["singles"] <= 30


def test_clean_records_are_read_once(work):
    events, _ = decode(*many(5_000))
    assert len(events) == 5_000
    assert work == {"lines": 5_000, "singles": 0}


def test_erasures_are_read_in_columns_too(work):
    events, _ = decode(*many(50), *[encode(type="$forget", item_id=None)] * 50)
    assert events.type.tolist() == [1] * 50 + [FORGET] * 50
    assert work == {"lines": 100, "singles": 0}


def test_a_stream_pays_for_its_own_form_once(work):
    decoding = decoder()
    lines = [encode(event_id=i, user_id=i, timestamp="2023-11-14T22:13:20+01:00") for i in range(3_000)]
    decoding.decode(lines)
    assert work["lines"] <= 2 * 3_000
    assert work["singles"] <= 4
    work.update(lines=0, singles=0)
    events, rejected = decoding.decode(lines)
    assert (len(events), rejected) == (3_000, [])
    assert work == {"lines": 3_000, "singles": 0}


def test_a_batch_of_alternating_forms_is_not_read_again_and_again(work):
    lines = [encode(user_id=i if i % 2 else str(i)) for i in range(6_000)]
    events, rejected = decode(*lines)
    assert (len(events), rejected) == (6_000, [])
    assert (
        work["lines"] <= 40 * 6_000
    )  # handed over, not parsed: the reader stops at the first that does not fit
    assert work["singles"] <= 2 * 6_000
