"""A mapping is suggested from sample documents: formats that people really have, and whatever else may come."""

import json
import random
import tomllib
import uuid
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.inspection import examine
from services.inspection_view import snippet, toml_text
from services.settings import make_settings
from services.shapes import kind_of_time, shapes_of, words
from services.suggestion import suggest
from services.vocabulary import known_type
from streaming.config import Source

KNOWN = ("view", "click", "like", "rating", "cart", "purchase")
SETTINGS = make_settings({})
TIME_MS = 1_763_805_600_000


def segment(n, pick):
    return {
        "type": "track",
        "event": pick(["Product Viewed", "Product Added", "Order Completed", "Product Clicked"]),
        "messageId": f"ajs-{n}",
        "userId": f"u{n % 30}",
        "anonymousId": str(uuid.UUID(int=n)),
        "timestamp": "2025-11-22T10:00:00.123Z",
        "sentAt": "2025-11-22T10:00:01Z",
        "receivedAt": "2025-11-22T10:00:02Z",
        "context": {"ip": "1.2.3.4", "userAgent": "Mozilla", "page": {"path": "/", "title": "x"}},
        "properties": {
            "product_id": f"p{n % 40}",
            "name": "Thing",
            "price": 9.5 + n,
            "category": pick(["a", "b"]),
        },
    }


def ga4(n, pick):
    return {
        "event_date": "20251122",
        "event_timestamp": 1000 * TIME_MS + n,
        "event_name": pick(["view_item", "add_to_cart", "purchase", "select_item", "session_start"]),
        "user_id": None if n % 5 else f"m{n % 7}",
        "user_pseudo_id": f"{n % 50}.17",
        "device": {"category": pick(["mobile", "desktop"]), "language": "en"},
        "item": {"item_id": f"SKU{n % 9}", "item_name": "n", "item_category": pick(["x", "y"]), "price": 1.0},
    }


def snowplow(n, pick):
    return {
        "app_id": "shop",
        "collector_tstamp": "2025-11-22T10:00:05Z",
        "derived_tstamp": "2025-11-22T10:00:00Z",
        "event_id": str(uuid.UUID(int=n)),
        "event": {
            "name": pick(["product_view", "add_to_cart", "remove_from_cart", "transaction"]),
            "vendor": "x",
        },
        "user": {"id": f"c-{n % 20}", "fingerprint": n, "session_id": str(uuid.UUID(int=n + 9999))},
        "contexts": {
            "product": {"sku": f"k{n % 13}", "price": 3.5, "category": pick(["x", "y"]), "name": "l"}
        },
    }


def shop_csv(n, pick):
    """A CSV file turned into JSON: everything is text."""
    return {
        "event_time": "2019-10-01 00:00:00 UTC",
        "event_type": pick(["view", "cart", "purchase"]),
        "product_id": str(44_600_000 + n % 30),
        "category_id": "2103807459595387724",
        "category_code": pick(["electronics.smartphone", "apparel.shoes"]),
        "brand": "sh",
        "price": "35.79",
        "user_id": str(541_312_140 + n % 20),
        "user_session": str(uuid.UUID(int=n)),
    }


def movielens(n, pick):
    return {
        "userId": n % 20,
        "movieId": n % 50,
        "rating": pick([1, 2.5, 5]),
        "timestamp": TIME_MS // 1000 + n,
    }


def retailrocket(n, pick):
    return {
        "timestamp": TIME_MS + n,
        "visitorid": 257_597 + n % 20,
        "event": pick(["view", "addtocart", "transaction"]),
        "itemid": 355_908 + n % 20,
        "transactionid": None,
    }


def ours(n, pick):
    return {
        "event_id": f"e{n}",
        "user_id": f"u{n % 20}",
        "item_id": f"i{n % 30}",
        "type": pick(KNOWN),
        "timestamp": TIME_MS,
        "value": 1.5,
    }


FORMATS = [
    (
        segment,
        {
            "event_id": "messageId",
            "user_id": "userId",
            "item_id": "properties.product_id",
            "type": "event",
            "timestamp": "timestamp",
            "value": "properties.price",
            "category": "properties.category",
        },
        {
            "Product Viewed": "view",
            "Product Added": "cart",
            "Order Completed": "purchase",
            "Product Clicked": "click",
        },
        {},
        1.0,
    ),
    (
        ga4,
        {
            "user_id": "user_pseudo_id",
            "item_id": "item.item_id",
            "type": "event_name",
            "value": "item.price",
            "category": "item.item_category",
        },
        {"view_item": "view", "add_to_cart": "cart", "select_item": "click"},
        {"timestamp": "$record"},
        0.8,
    ),
    (
        snowplow,
        {
            "event_id": "event_id",
            "user_id": "user.id",
            "item_id": "contexts.product.sku",
            "type": "event.name",
            "timestamp": "derived_tstamp",
            "value": "contexts.product.price",
            "category": "contexts.product.category",
        },
        {"product_view": "view", "add_to_cart": "cart", "transaction": "purchase"},
        {},
        0.75,
    ),
    (
        shop_csv,
        {"user_id": "user_id", "item_id": "product_id", "type": "event_type", "category": "category_code"},
        {},
        {"timestamp": "$record"},
        1.0,
    ),
    (
        movielens,
        {"user_id": "userId", "item_id": "movieId", "value": "rating"},
        {},
        {"type": "rating", "timestamp": "$record"},
        1.0,
    ),
    (
        retailrocket,
        {"user_id": "visitorid", "item_id": "itemid", "type": "event", "timestamp": "timestamp"},
        {"addtocart": "cart", "transaction": "purchase"},
        {},
        1.0,
    ),
    (
        ours,
        {name: name for name in ("event_id", "user_id", "item_id", "type", "timestamp", "value")},
        {},
        {},
        1.0,
    ),
]


def sample(form, count=200):
    pick = random.Random(1).choice
    return [form(number, pick) for number in range(count)]


def inspection(documents, topic="t"):
    values = [
        document if isinstance(document, bytes) else json.dumps(document).encode() for document in documents
    ]
    records = [
        SimpleNamespace(value=value, key=b"k", timestamp=TIME_MS, partition=0, offset=offset)
        for offset, value in enumerate(values)
    ]
    return examine(SETTINGS, topic, records, ())


@pytest.mark.parametrize(
    ("form", "fields", "types", "constants", "share"), FORMATS, ids=lambda x: getattr(x, "__name__", "")
)
def test_formats_that_people_have_are_recognised(form, fields, types, constants, share):
    found = suggest(sample(form), KNOWN)
    assert (found.fields, found.types, found.constants, found.missing) == (fields, types, constants, ())
    accepted = inspection(sample(form)).suggested.accepted
    assert accepted == pytest.approx(200 * share, abs=20)
    assert share < 1 or accepted == 200


@pytest.mark.parametrize("form", [entry[0] for entry in FORMATS], ids=lambda form: form.__name__)
def test_the_snippet_is_the_mapping_that_was_verified(form):
    found = inspection(sample(form), topic='odd "name"\n')
    (pasted,) = tomllib.loads(snippet(found))["streaming"]["sources"]
    assert Source(**pasted) == found.suggested_source


@pytest.mark.parametrize(
    ("form", "note"),
    [
        (ga4, "event_timestamp is in epoch microseconds"),
        (movielens, "timestamp is in epoch seconds"),
        (shop_csv, "event_time is text that is not ISO 8601"),
        (shop_csv, "price is a number written as text"),
        (retailrocket, "No event id was found"),
    ],
)
def test_what_no_mapping_can_mend_is_said(form, note):
    assert any(said.startswith(note) for said in suggest(sample(form), KNOWN).notes)


def test_items_in_a_list_are_pointed_out():
    listed = [{"user_id": "u", "event_name": "view_item", "items": [{"item_id": f"s{n}"}]} for n in range(30)]
    found = suggest(listed, KNOWN)
    assert found.missing == ("item_id",)
    assert any("items[].item_id stands in a list" in note for note in found.notes)
    assert '# item_id = ""  # not found' in snippet(inspection(listed))


def test_types_without_a_known_meaning_are_left_to_the_person():
    found = suggest(sample(snowplow), KNOWN)
    assert list(found.unmapped) == ["remove_from_cart"]
    assert '# "remove_from_cart" = ""' in snippet(inspection(sample(snowplow)))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("view", "view"),
        ("product_view", "view"),
        ("Product Viewed", "view"),
        ("VIEW", "view"),
        ("select_item", "click"),
        ("addToCart", "cart"),
        ("Product Added", "cart"),
        ("order_completed", "purchase"),
        ("buy", "purchase"),
        ("add_to_wishlist", "like"),
        ("review_submitted", "rating"),
        ("remove_from_cart", None),
        ("view_cart", None),
        ("order_cancelled", None),
        ("begin_checkout", None),
        ("unlike", None),
        ("user_deleted", None),
        ("login", None),
    ],
)
def test_a_type_gets_a_meaning_only_where_that_is_plain(name, kind):
    assert known_type(name, KNOWN) == kind


def test_a_meaning_that_the_settings_do_not_know_is_not_proposed():
    assert known_type("add_to_cart", ("view", "purchase")) is None
    assert known_type("Skip Track", ("play", "skip_track")) == "skip_track"


def test_an_id_that_repeats_is_no_event_id():
    """Headrace would drop the repeats as duplicates: what stands at the default path must not do that."""
    documents = [ours(n, random.Random(n).choice) | {"event_id": f"kind{n % 3}"} for n in range(60)]
    found = inspection(documents)
    assert found.suggested_source.fields.event_id == "no_event_id"
    assert any("event_id" in line and "leads nowhere" in line for line in snippet(found).splitlines())


def test_no_path_is_taken_inside_of_another():
    """Where a producer changed its mind about a field's form, no mapping could name both."""
    old, new = {"event": "view"}, {"event": {"name": "view", "id": "e"}}
    documents = [
        {"user_id": "u", "item_id": "i"} | (new | {"event": new["event"] | {"id": f"e{n}"}} if n % 2 else old)
        for n in range(60)
    ]
    fields = suggest(documents, KNOWN).fields
    assert fields["event_id"] == "event.id"
    assert fields["type"] == "event.name"
    assert inspection(documents).suggested.accepted == 30


def test_a_default_path_does_not_get_in_the_way():
    """`value` is where an amount is looked for by default; here it is an envelope."""
    documents = [{"value": {"user_id": f"u{n % 5}", "item_id": "i", "type": "view"}} for n in range(60)]
    assert inspection(documents).suggested.accepted == 60


def test_an_optional_path_that_would_refuse_records_is_not_taken():
    documents = [ours(n, random.Random(n).choice) | {"value": "a lot", "category": [1]} for n in range(60)]
    found = inspection(documents)
    assert found.suggested.accepted == 60
    assert found.present.accepted == 0


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("2025-11-22T10:00:00Z", "ISO 8601"),
        ("2025-11-22", "ISO 8601"),
        ("2025-11-22 10:00:00 UTC", "text"),
        ("1763805600000", "numeric text"),
        (1_763_805_600_000, "epoch ms"),
        (1_763_805_600, "epoch s"),
        (1_763_805_600_000_000, "epoch µs"),
        (1_763_805_600_000_000_000, "epoch ns"),
        (17, ""),
        (float("nan"), ""),
        ("hello", ""),
    ],
)
def test_times_are_told_apart(value, kind):
    assert kind_of_time(value) == kind


def test_names_fall_into_words():
    assert words("productId") == words("product_id") == words("Product ID") == ["product", "id"]
    assert words("HTTPStatus-code") == ["http", "status", "code"]


def test_shapes_count_what_is_there():
    first, second, third = shapes_of([{"a": {"b": 1}, "l": [{"x": "y"}]}, {"a": {"b": "1"}}, {"a": None}, 7])
    assert (first.path, first.count, first.kind, first.distinct) == ("a.b", 2, "integer or text", 1)
    assert (second.path, second.kind) == ("l", "list")
    assert (third.path, third.mappable) == ("l[].x", False)


PLAIN = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
NAMES = st.text(max_size=6) | st.sampled_from(
    [
        "user",
        "user_id",
        "item_id",
        "value",
        "event_id",
        "type",
        "ts",
        "timestamp",
        "category",
        "items",
        "id",
        "a.b",
        "\ud800",
    ]
)
JSON = st.recursive(
    PLAIN, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=5)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(JSON | st.dictionaries(NAMES, JSON, max_size=6), max_size=6))
def test_whatever_the_documents_are_there_is_a_valid_suggestion(documents):
    """It never raises, its TOML can be read, and the decoder takes the mapping."""
    suggest(documents, KNOWN)
    found = inspection([json.dumps(document).encode() for document in documents])
    if not found.suggestion.missing:
        (pasted,) = tomllib.loads(snippet(found))["streaming"]["sources"]
        assert Source(**pasted) == found.suggested_source


@given(st.text().map(lambda text: text.encode(errors="ignore").decode()))
def test_any_text_can_be_written_as_toml(text):
    written = toml_text(text)
    assert written.isprintable()
    assert tomllib.loads(f"a = {written}")["a"] == text
