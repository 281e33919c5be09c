"""The filter language: what it selects, held against each item by itself, and what it says when it refuses."""

import json
import operator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.conditions import BUILT_IN, FilterError
from serving.filters import MAX_DEPTH, MAX_LENGTH, MAX_SEARCHES, MAX_TERMS, parse
from streaming.catalog import CatalogReader, CatalogStore, Item
from tests.serving.shelf import columns_of

SHELF = [
    {
        "item_id": "a",
        "title": "Star Wars",
        "categories": ["Action", "Sci-Fi"],
        "attributes": {
            "price": 9.5,
            "brand": "Lucas",
            "on_sale": True,
            "tags": ["space", "old"],
            "screen size": 5,
        },
    },
    {
        "item_id": "b",
        "title": "Stardust",
        "categories": ["Comedy"],
        "attributes": {"price": 12, "brand": "a", "on_sale": False, "released": "2007-08-10", "not": 1},
    },
    {"item_id": "c", "title": "", "categories": ["Comedy", "Action"], "available": False},
    {
        "item_id": "d",
        "title": "Straße",
        "attributes": {"price": "ask", "tags": [], "brand": None, "deep": {"x": 1}},
    },
]


def found(text, items=SHELF, retired=("gone",)):
    columns, table = columns_of(*items, retired=retired)
    rows = parse(text).rows(columns)
    return "".join(sorted(table.ids[row] for row in rows.nonzero()[0]))


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ('category = "Comedy"', "bc"),
        ("category = 'Comedy' and price < 20", "b"),
        ('category != "Comedy"', "a"),
        ('not category = "Comedy"', "adgone"),
        ('category in ("Action", "Sci-Fi")', "ac"),
        ("price < 10", "a"),
        ("price >= 9.5 AND price <= 12.0", "ab"),
        ("price != 9.5", "bd"),
        ("price > -1e3", "ab"),
        ('price = "ask"', "d"),
        ('price in (12, "ask")', "bd"),
        ("not price < 10", "bcdgone"),
        ("on_sale", "a"),
        ("on_sale = false", "b"),
        ("on_sale != true", "b"),
        ("not on_sale", "bcdgone"),
        ('tags = "space"', "a"),
        ('tags != "space"', ""),
        ("exists(tags)", "a"),
        ("exists(brand)", "ab"),
        ("not exists(price)", "cgone"),
        ("exists(deep)", ""),
        ('released >= "2007" and released < "2008"', "b"),
        ('brand > "Lucas"', "b"),
        ('brand <= "Lucas"', "a"),
        ('title ~ "STAR"', "ab"),
        ('title ~ "strasse"', "d"),
        ('title ~ "ar w"', "a"),
        ('tags ~ "pac"', "a"),
        ('title = "c"', "c"),
        ('item_id in ("a", "gone", "nobody")', "agone"),
        ("available", "abd"),
        ("new", "abcd"),
        ('"screen size" = 5', "a"),
        ('"not" = 1', "b"),
        ('price < 10 or category = "Comedy" and available', "ab"),
        ('(price < 10 or category = "Comedy") and not available', "c"),
        (r'brand = "\a"', "b"),
    ],
)
def test_what_is_selected(text, ids):
    assert found(text) == ids


@pytest.mark.parametrize(
    ("text", "at", "said"),
    [
        ("", 1, "expected the name of a field, got the end; for example: category"),
        ("price <", 8, "expected a value"),
        ("price < ten", 9, 'expected a value ("text", number, true or false), got ten'),
        ("price 10", 7, "expected a comparison (= != < <= > >= ~ in), got 10"),
        ('brand not in ("a")', 7, "expected a comparison"),
        ("(price < 10", 12, "expected and, or, or ), got the end"),
        ("price < 10)", 11, "expected and, or, or the end, got )"),
        ("price < 10 & new", 12, "cannot read '& new'"),
        ('brand = "a', 9, "cannot read '\"a'"),
        ("brand in ()", 11, "expected a value"),
        ("price < 1.2.3", 9, "cannot read"),
        ("price < 1e999", 9, "expected a value"),
        ("price ~ 3", 9, "expected a text behind ~"),
        ("on_sale < true", 9, "expected = or != before true and false"),
        (" or ".join(['a ~ "b"'] * (MAX_SEARCHES + 1)), 58, f"at most {MAX_SEARCHES} ~"),
        ("exists price", 8, "expected (, got price"),
        ("in = 3", 1, "names like this in quotes"),
        ("__import__('os').system('x')", 17, "cannot read"),
        ("not " * (MAX_DEPTH + 1) + "new", 4 * (MAX_DEPTH + 1) + 1, f"at most {MAX_DEPTH} deep"),
        ("(" * 900, MAX_DEPTH + 2, f"at most {MAX_DEPTH} deep"),
        (f"price in ({', '.join(['1'] * (MAX_TERMS + 1))})", None, f"at most {MAX_TERMS} comparisons"),
        (" " * (MAX_LENGTH + 1), MAX_LENGTH + 1, f"at most {MAX_LENGTH} characters"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_place(text, at, said):
    with pytest.raises(FilterError) as caught:
        parse(text)
    assert said in str(caught.value)
    assert at is None or str(caught.value).startswith(f"at character {at}: ")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "prize < 3",
            "at character 1: no item has an attribute 'prize'; did you mean price? (attributes: brand, price, ",
        ),
        (
            'new and categry = "x"',
            "at character 9: no item has an attribute 'categry'; did you mean category?",
        ),
        ('"title" = "x"', "no item has an attribute 'title'; did you mean title?"),
        ("brand < 3", "brand holds texts, but is compared with numbers"),
        ("on_sale = 1", "on_sale holds true/false, but is compared with numbers"),
        ("price", "price holds numbers and texts, but is compared with true/false"),
        ('available = "yes"', "available holds true/false, but is compared with texts"),
    ],
)
def test_what_no_item_has_is_told_with_what_there_is(text, said):
    with pytest.raises(FilterError) as caught:
        found(text)
    assert said in str(caught.value)


def test_an_error_names_ten_attributes_of_many():
    columns, _ = columns_of({"item_id": "a", "attributes": {f"n{i:02}": i for i in range(14)}})
    with pytest.raises(FilterError, match=r"attributes: n00, .*, n09 and 4 more; built in"):
        parse("x = 1").rows(columns)


def test_a_result_is_computed_once_per_snapshot_and_cannot_be_changed():
    columns, _ = columns_of(*SHELF)
    first = parse("price < 10").rows(columns)
    assert parse("price < 10").rows(columns) is first
    assert not first.flags.writeable
    assert parse("price < 10").rows(columns_of(*SHELF)[0]) is not first
    for number in range(200):
        parse(f"price < {number}").rows(columns)
    assert parse("price < 10").rows(columns) is not first  # forgotten, not kept for ever
    assert columns.built_in("available").present.flags.writeable


def test_columns_in_use_are_built_ahead_for_the_next_snapshot():
    before, _ = columns_of(*SHELF)
    parse('price < 10 and title ~ "x"').rows(before)
    after, _ = columns_of(*SHELF)
    after.warm(before)
    assert list(after._attributes) == ["price"]
    assert list(after._built_in) == ["title"]


def test_attributes_come_from_the_catalogue_as_they_were_published(tmp_path):
    store, reader = CatalogStore(tmp_path, 0.1), CatalogReader(tmp_path)
    items = [Item.model_validate(item) for item in SHELF]
    store.apply([(item.item_id, item) for item in items], 0, 1)
    snapshot = reader.snapshot()
    published = {item["item_id"]: item.get("attributes", {}) for item in SHELF}
    assert dict(zip(snapshot.ids, snapshot.attributes, strict=True)) == published
    reader.close()
    store.close()


# --- any filter over any items, against one item at a time ------------------------------------------------

TEXTS = st.sampled_from(["a", "b", "Ab", 'qu"ote', "back\\slash", "ß", "", "and"])
NUMBERS = st.sampled_from([-2, 0, 1, 1.5, 10**400, 7e20])
VALUES = st.one_of(TEXTS, NUMBERS, st.booleans(), st.none(), st.lists(TEXTS, max_size=3), st.just([1, 2]))
NAMES = ["price", "brand", "two words"]
ITEMS = st.lists(
    st.fixed_dictionaries(
        {
            "categories": st.lists(TEXTS, max_size=3),
            "title": TEXTS,
            "available": st.booleans(),
            "attributes": st.dictionaries(st.sampled_from(NAMES), VALUES),
        }
    ),
    min_size=1,
    max_size=8,
)
ORDERS = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
LITERALS = st.one_of(TEXTS, st.sampled_from([-2, 0, 1, 1.5]), st.booleans())
FIELDS = st.sampled_from(["category", "title", "item_id", "available", *NAMES])


def comparisons(field):
    signs = st.sampled_from([*ORDERS, "!="])
    return st.one_of(
        st.tuples(st.just("compare"), field, signs, st.one_of(TEXTS, st.sampled_from([-2, 0, 1, 1.5]))),
        st.tuples(st.just("compare"), field, st.sampled_from(["=", "!="]), st.booleans()),
        st.tuples(st.just("compare"), field, st.just("~"), TEXTS),
        st.tuples(st.just("in"), field, st.lists(LITERALS, min_size=1, max_size=3)),
        st.tuples(st.just("exists"), field),
        st.tuples(st.just("flag"), field),
    )


TREES = st.recursive(
    comparisons(FIELDS),
    lambda inner: st.one_of(
        st.tuples(st.just("not"), inner),
        st.tuples(st.sampled_from(["and", "or"]), st.lists(inner, min_size=2, max_size=3)),
    ),
    max_leaves=MAX_SEARCHES,
)


def written(tree):
    kind, *rest = tree
    if kind in ("and", "or"):
        return "(" + f" {kind} ".join(map(written, rest[0])) + ")"
    if kind == "not":
        return "not " + written(rest[0])
    name = rest[0] if rest[0].isidentifier() else json.dumps(rest[0])
    if kind == "exists":
        return f"exists({name})"
    if kind == "flag":
        return name
    if kind == "in":
        return f"{name} in ({', '.join(map(json_text, rest[1]))})"
    return f"{name} {rest[1]} {json_text(rest[2])}"


def json_text(value):
    return json.dumps(value, ensure_ascii=False)


def values_of(item, name):
    if name in BUILT_IN:
        told = {
            "category": item["categories"],
            "item_id": item["item_id"],
            "title": item["title"] or item["item_id"],
            "available": item["available"],
        }[name]
    else:
        told = item["attributes"].get(name)
    if isinstance(told, list):
        return [one for one in told if isinstance(one, str)]
    return [] if told is None else [told]


def same_kind(left, right):
    kinds = [
        bool if isinstance(one, bool) else str if isinstance(one, str) else float for one in (left, right)
    ]
    return kinds[0] is kinds[1]


def meets(item, tree):  # noqa: PLR0911 - one line per kind
    kind, *rest = tree
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(meets(item, part) for part in rest[0])
    if kind == "not":
        return not meets(item, rest[0])
    values = values_of(item, rest[0])
    if kind == "exists":
        return bool(values)
    if kind == "flag":
        return values == [True] and isinstance(values[0], bool)
    if kind == "in":
        return any(same_kind(value, one) and value == one for value in values for one in rest[1])
    sign, literal = rest[1], rest[2]
    alike = [value for value in values if same_kind(value, literal)]
    if sign == "!=":
        return bool(values) and literal not in alike
    if sign == "~":
        return any(literal.casefold() in value.casefold() for value in alike)
    return any(ORDERS[sign](value, literal) for value in alike)


@settings(deadline=None)
@given(ITEMS, TREES)
def test_any_filter_selects_what_each_item_by_itself_meets(items, tree):
    items = [{**item, "item_id": f"item{number}"} for number, item in enumerate(items)]
    columns, table = columns_of(*items)
    try:
        rows = parse(written(tree)).rows(columns)
    except FilterError as error:
        assert "no item has an attribute" in str(error) or "but is compared with" in str(error)  # noqa: PT017
        return
    by_id = {item["item_id"]: item for item in items}
    assert rows.tolist() == [meets(by_id[item_id], tree) for item_id in table.ids]


@settings(deadline=None)
@given(st.text(max_size=60) | st.text(alphabet="ab()=<>~!,'\"\\ notinrex1.", max_size=60))
def test_no_text_does_more_than_be_refused(text):
    columns, _ = columns_of({"item_id": "a", "attributes": {"a": 1, "b": "x"}})
    try:
        assert len(parse(text).rows(columns)) == 1
    except FilterError as error:
        assert str(error).startswith("at character ")  # noqa: PT017
