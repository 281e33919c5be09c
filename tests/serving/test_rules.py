"""Business rules: what they do to a list, when they hold, and what a wrong one is told."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from serving.policy_config import RuleSettings
from serving.rules import PIN, RuleBook
from tests.serving.shelf import columns_of

SHELF = [
    {"item_id": f"{kind}{number}", "categories": [kind, *more], "attributes": {"stock": number}}
    for kind, more in (("comedy", []), ("drama", []), ("both", ["comedy", "drama"]))
    for number in range(4)
]
COLUMNS, TABLE = columns_of(*SHELF, retired=("old",))
NAMED = ["comedy0", "comedy1", "comedy2", "drama0", "comedy3", "both0", "both1", "drama1", "drama2", "both2"]


def row(item):
    return TABLE.ids.index(item)


def compiled(now_s=0.0, **rules):
    return RuleBook(RuleSettings.model_validate(rules)).compiled(COLUMNS, now_s)


def arranged(rules, k, per=None, candidates=NAMED):
    """The ids of a list, from candidates by name whose scores fall by one."""
    rows = np.array([row(item) for item in candidates], np.int64)
    scores = -np.arange(len(rows), dtype=np.float32)
    if rules.offsets is not None:
        scores = scores + rules.offsets[rows]
        order = np.argsort(-scores, kind="stable")
        rows, scores = rows[order], scores[order]
    rows, scores = rules.apply(rows, scores, k, per)
    return [TABLE.ids[one] for one in rows], scores.tolist()


def test_without_rules_nothing_changes():
    rules = compiled()
    assert (rules.offsets, rules.blocked, rules.candidates(10)) == (None, None, 10)
    assert arranged(rules, 3) == (NAMED[:3], [0, -1, -2])


def test_a_boost_multiplies_the_odds_and_several_multiply():
    rules = compiled(
        boost=[
            {"filter": 'category = "drama"', "factor": 2},
            {"filter": "stock >= 2", "factor": 0.5},
            {"filter": "stock >= 2", "factor": 4},
        ]
    )
    added = np.exp(rules.offsets)
    assert [added[row(item)] for item in ("comedy0", "drama0", "comedy2", "both3", "old")] == pytest.approx(
        [1, 2, 2, 4, 1]
    )
    scores = np.array([-0.3, 1.2, -2.0])
    before = np.exp(scores) / np.exp(scores).sum()
    after = np.exp(scores + np.log([2, 1, 1]))
    after /= after.sum()
    assert after[0] / after[1] == pytest.approx(2 * before[0] / before[1])


def test_no_number_of_boosts_reaches_a_pin():
    rules = compiled(
        boost=[{"filter": "exists(stock)", "factor": 1000}] * 30, pin=[{"item_id": "old", "position": 1}]
    )
    assert rules.offsets.max() == PIN
    assert np.delete(rules.offsets, row("old")).max() == 50


def test_a_block_names_the_rows():
    rules = compiled(block=[{"filter": "stock = 0"}, {"filter": 'item_id = "drama3"'}])
    assert sorted(TABLE.ids[one] for one in rules.blocked.nonzero()[0]) == [
        "both0",
        "comedy0",
        "drama0",
        "drama3",
    ]


def test_a_pin_stands_at_its_place_with_its_own_score():
    rules = compiled(pin=[{"item_id": "drama2", "position": 2}, {"item_id": "both2", "position": 1}])
    assert arranged(rules, 4) == (["both2", "drama2", "comedy0", "comedy1"], [-9, -8, 0, -1])


def test_a_pin_that_is_no_candidate_is_not_shown():
    rules = compiled(pin=[{"item_id": "drama3", "position": 1}])
    assert arranged(rules, 2)[0] == ["comedy0", "comedy1"]


def test_a_pin_of_a_later_page_stays_out_of_this_one_and_stands_there():
    rules = compiled(pin=[{"item_id": "comedy0", "position": 4}])
    assert arranged(rules, 3)[0] == ["comedy1", "comedy2", "drama0"]
    assert arranged(rules, 6)[0] == ["comedy1", "comedy2", "drama0", "comedy0", "comedy3", "both0"]


def test_a_pin_behind_the_end_is_last():
    rules = compiled(pin=[{"item_id": "comedy0", "position": 30}])
    assert arranged(rules, 10)[0][-1] == "comedy0"
    assert arranged(rules, 40, candidates=NAMED[:3])[0] == ["comedy1", "comedy2", "comedy0"]


def test_a_place_that_is_taken_gives_the_next():
    rules = compiled(
        pin=[
            {"item_id": "drama2", "position": 2},
            {"item_id": "both2", "position": 2},
            {"item_id": "drama2", "position": 5},
        ]
    )
    assert arranged(rules, 4)[0] == ["comedy0", "drama2", "both2", "comedy1"]


def test_a_pin_holds_while_its_item_meets_the_filter():
    rules = compiled(
        pin=[
            {"item_id": "drama0", "position": 1, "filter": "stock > 0"},
            {"item_id": "both1", "position": 1, "filter": "stock > 0"},
        ]
    )
    assert arranged(rules, 2)[0] == ["both1", "comedy0"]


def test_a_cap_on_each_category_counts_every_category_of_an_item():
    rules = compiled(cap=[{"each": "category", "most": 2}])
    assert arranged(rules, 5)[0] == ["comedy0", "comedy1", "drama0", "drama1"]
    rules = compiled(cap=[{"each": "category", "most": 2}, {"filter": 'category = "drama"', "most": 1}])
    assert arranged(rules, 5)[0] == ["comedy0", "comedy1", "drama0"]


def test_a_cap_on_one_kind_leaves_the_others():
    rules = compiled(cap=[{"filter": 'category = "comedy"', "most": 1}])
    assert arranged(rules, 4)[0] == ["comedy0", "drama0", "drama1", "drama2"]
    assert compiled(cap=[{"filter": 'category = "comedy"', "most": 1}]).candidates(10) == 100


def test_pins_count_for_caps():
    rules = compiled(
        cap=[{"filter": 'category = "comedy"', "most": 2}], pin=[{"item_id": "comedy3", "position": 3}]
    )
    assert arranged(rules, 4)[0] == ["comedy0", "drama0", "comedy3", "drama1"]


def test_a_pin_stands_behind_a_short_answer_but_not_in_the_one_before():
    rules = compiled(cap=[{"each": "category", "most": 1}], pin=[{"item_id": "both3", "position": 5}])
    shown = ["comedy0", "drama0", "both3"]
    assert arranged(rules, 6, candidates=shown)[0] == ["both3"]  # a comedy and a drama, like the others
    rules = compiled(cap=[{"filter": "stock = 0", "most": 1}], pin=[{"item_id": "both3", "position": 4}])
    shown = ["comedy0", "drama0", "both0", "both3"]
    assert arranged(rules, 4, per=4, candidates=shown)[0] == ["comedy0", "both3"]
    assert arranged(rules, 4, per=3, candidates=shown)[0] == ["comedy0"]


def test_what_is_held_back_stands_in_the_next_answer():
    rules = compiled(cap=[{"filter": 'category = "comedy"', "most": 1}])
    assert arranged(rules, 6, per=2)[0] == ["comedy0", "drama0", "comedy1", "drama1", "comedy2", "drama2"]


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([item["item_id"] for item in SHELF]), unique=True, max_size=12),
    st.integers(1, 12),
    st.integers(1, 6),
    st.integers(0, 3),
    st.lists(st.tuples(st.sampled_from([item["item_id"] for item in SHELF]), st.integers(1, 8)), max_size=3),
)
def test_a_list_keeps_to_its_caps_and_its_beginning_does_not_depend_on_its_length(
    names, k, per, most, pinned
):
    rules = compiled(
        cap=[{"each": "category", "most": most}],
        pin=[{"item_id": item, "position": position} for item, position in pinned],
    )
    found = arranged(rules, k, per, names)[0]
    assert len(set(found)) == len(found) <= k
    assert set(found) <= set(names)
    pins = {item for item, _ in pinned}
    kinds = {item["item_id"]: item["categories"] for item in SHELF}
    for begin in range(0, len(found), per):
        answer = found[begin : begin + per]
        for category in ("comedy", "drama", "both"):
            inside = [item for item in answer if category in kinds[item]]
            assert len(inside) <= most or set(inside) <= pins or len([i for i in inside if i in pins]) >= most
    free = [item for item in found if item not in pins]
    if per >= k and not pins:  # the greedy list: an item stands there unless a cap was full
        assert free == sorted(free, key=names.index)
    if k % per == 0 and k < len(names):
        longer = arranged(rules, k + per, per, names)[0]
        assert k + per >= len(names) or longer[: len(found)] == found


def test_rules_begin_and_end():
    settings = RuleSettings.model_validate(
        {
            "boost": [
                {
                    "filter": "new",
                    "factor": 2,
                    "starts": "1970-01-01T00:01:40Z",
                    "ends": "1970-01-01T00:03:20Z",
                }
            ],
            "block": [{"filter": "stock = 0", "starts": "1970-01-01T01:00:00+01:00"}],
        }
    )
    book = RuleBook(settings)
    early, same = book.compiled(COLUMNS, 99.9), book.compiled(COLUMNS, 5.0)
    assert early is same
    assert early.offsets is None
    assert early.blocked is not None
    assert book.compiled(COLUMNS, 100.0).offsets is not None
    assert book.compiled(COLUMNS, 199.0) is book.compiled(COLUMNS, 150.0)
    assert book.compiled(COLUMNS, 200.0).offsets is None
    assert [settings.since_s(now) for now in (-1, 50, 150, 250)] == [-np.inf, 0, 100, 200]


def test_rules_follow_the_snapshot():
    book = RuleBook(RuleSettings.model_validate({"pin": [{"item_id": "x", "position": 1}]}))
    assert book.compiled(COLUMNS, 0).pins == {}
    other, _ = columns_of({"item_id": "x"})
    assert book.compiled(other, 0).pins == {0: 0}


def test_a_rule_that_finds_nothing_is_told_once_and_does_nothing(caplog):
    rules = {
        "boost": [{"filter": "prize > 3", "factor": 2}],
        "pin": [{"item_id": "nobody", "position": 1}],
        "cap": [{"each": "stock", "most": 1}],
    }
    book = RuleBook(RuleSettings.model_validate(rules))
    one, other = columns_of(*SHELF)[0], columns_of(*SHELF)[0]
    for columns in (one, other):
        found = book.compiled(columns, 0)
        assert (found.offsets, found.pins, found.limits) == (None, {}, [])
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert "did you mean" in "".join(told) or "attributes: stock" in "".join(told)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"boost": [{"filter": "price <", "factor": 2}]}, "boost.0.filter at character 8: expected a value"),
        ({"boost": [{"filter": "new", "factor": 0}]}, "boost.0.factor"),
        ({"pin": [{"item_id": "a", "position": 0}]}, "pin.0.position"),
        ({"cap": [{"most": 3}]}, "either each (a field) or filter"),
        ({"cap": [{"most": 3, "each": "category", "filter": "new"}]}, "either each (a field) or filter"),
        ({"block": [{"filter": "new", "starts": "2026-01-01T00:00:00"}]}, "timezone"),
        (
            {"block": [{"filter": "new", "starts": "2026-01-02T00:00Z", "ends": "2026-01-01T00:00Z"}]},
            "is not before ends",
        ),
        ({"bury": []}, "Extra inputs"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_settings(rules, said):
    with pytest.raises(ValidationError) as caught:
        RuleSettings.model_validate(rules)
    first = caught.value.errors()[0]
    text = ".".join(map(str, first["loc"])) + " " + first["msg"].removeprefix("Value error, ")
    assert said in text
