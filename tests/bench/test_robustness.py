"""The page about attacks and defences says what the reports say."""

import pytest

from tests.bench.robustness import BEGIN, END, FOLDER, PAGE, rebuilt, reports


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
