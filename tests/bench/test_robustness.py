"""The page about attacks and defences says what the reports say."""

import re

import pytest

from services.evaluation.robustness import ALL
from tests.bench.robustness import BEGIN, END, FOLDER, PAGE, is_whole, rebuilt, reports
from tests.bench.robustness_tables import AIMS, headline, missed, risen


def test_the_page_in_the_documentation_is_up_to_date() -> None:
    page = PAGE.read_text()
    assert page == rebuilt(page, FOLDER), "run `make results`"


def test_words_by_hand_stay_and_marks_are_needed() -> None:
    made = rebuilt(f"before\n{BEGIN}\nold\n{END}\nafter\n", FOLDER)
    assert made.startswith("before\n")
    assert made.endswith(f"{END}\nafter\n")
    assert "old" not in made
    for report in reports(FOLDER).values():
        assert report["command"] in made
    with pytest.raises(ValueError, match="expected"):
        rebuilt("nothing", FOLDER)


def test_every_share_named_in_the_words_behind_the_tables_stands_in_a_table() -> None:
    made, words = PAGE.read_text().split(BEGIN, 1)[1].split(END, 1)
    shares = set(re.findall(r"[-+]?\d+\.\d+%?", words))
    assert shares
    assert not {share for share in shares if share not in made}


def test_aims_that_are_missed_are_printed_bold() -> None:
    whole = [report for report in reports(FOLDER).values() if report["plan"]["kinds"] and is_whole(report)]
    bold = sum(line.count("**") // 2 for line in headline(whole))
    short = sum(missed(report["summary"][ALL], key) for report in whole for key in AIMS)
    assert bold == short + sum(not risen(report).startswith("0") for report in whole)


def a_report(gains: dict[tuple[str, int], tuple[float, float]]) -> dict:
    """Gains in exposure without and with all defences, by kind and seed."""
    runs = []
    for (kind, seed), pair in gains.items():
        for variant, gain in zip(("none", "all"), pair, strict=True):
            figures = {"clean": {"exposure@10": 0.25}, "poisoned": {"exposure@10": 0.25 + gain}}
            runs.append({"variant": variant, "seed": seed, "poison": {kind: figures}})
    return {"runs": runs}


def test_what_rose_and_what_fell_short_by_hand() -> None:
    assert risen(a_report({("gan", 0): (0.5, 0.25), ("gan", 1): (0.0, 0.0)})) == "0 of 2"
    assert risen(a_report({("gan", 0): (0.25, 0.5), ("segment", 0): (0.5, 0.25)})) == "**1 of 2**"
    assert missed({"clean_ndcg_change": -0.006}, "clean_ndcg_change")
    assert not missed({"clean_ndcg_change": 0.02}, "clean_ndcg_change")
    assert missed({"step_cost_ratio": 2.3}, "step_cost_ratio")
    assert not missed({"step_cost_ratio": None}, "step_cost_ratio")
