"""Attacks on items' texts, with an encoder of hashed three-letter pieces."""

import subprocess
import sys
import zlib
from functools import cache

import numpy as np
import pytest

from training.attacks import TEXT_ATTACKS, TextView
from training.attacks.texts import words_of

NAMES = "river mountain castle garden window letter stranger winter journey island"
TARGETS = np.array([20, 27])
BUDGET = 3
GENRES = ("comedy musical", "western drama", "horror thriller")


@cache
def vector(text):
    found = np.zeros(64, np.float32)
    padded = f" {text.lower()} "
    for at in range(len(padded) - 2):
        found[zlib.crc32(padded[at : at + 3].encode()) % 64] += 1.0
    return found / max(np.linalg.norm(found), 1e-9)


def encode(texts):
    return np.stack([vector(text) for text in texts])


@pytest.fixture(scope="module")
def view():
    """30 films of three genres; only comedies are popular, the targets are horror."""
    names = NAMES.split()
    texts = [
        f"The {names[n % 10]} {names[(3 * n + 1) % 10]}s ({1960 + n}). {GENRES[n // 10]}" for n in range(30)
    ]
    counts = np.where(np.arange(30) < 10, 50.0, 1.0)
    return TextView(texts, counts, encode)


def rewritten(name, view, budget=BUDGET, seed=0):
    return TEXT_ATTACKS[name]().rewrite(view, TARGETS, budget, np.random.default_rng(seed))


def value(view, texts):
    return view.value(encode(texts), TARGETS)


def originals(view):
    return [view.texts[target] for target in TARGETS]


@pytest.mark.parametrize("name", sorted(TEXT_ATTACKS))
class TestContract:
    def test_says_what_it_is(self, name, view):
        assert TEXT_ATTACKS[name].name == name
        assert len(TEXT_ATTACKS[name].reference) > 20
        assert TEXT_ATTACKS[name].__doc__

    def test_one_text_for_each_target_and_each_is_changed(self, name, view):
        for before, after in zip(originals(view), rewritten(name, view), strict=True):
            assert after != before

    def test_the_same_seed_gives_the_same_texts(self, name, view):
        assert rewritten(name, view, seed=1) == rewritten(name, view, seed=1)

    def test_keeps_to_its_budget_of_words(self, name, view):
        for budget in (1, 3):
            for before, after in zip(originals(view), rewritten(name, view, budget), strict=True):
                old, new = before.split(), after.split()
                if len(new) == len(old):
                    assert sum(a != b for a, b in zip(old, new, strict=True)) <= budget
                else:
                    assert len(new) <= len(old) + budget

    def test_no_budget_changes_nothing(self, name, view):
        assert rewritten(name, view, 0) == originals(view)

    def test_an_item_without_text_is_no_obstacle(self, name, view):
        texts = ["", *view.texts[1:]]
        bare = TextView(texts, view.counts, encode)
        found = TEXT_ATTACKS[name]().rewrite(bare, np.array([0]), BUDGET, np.random.default_rng(0))
        assert len(found) == 1
        assert found[0] == found[0].strip()


@pytest.mark.parametrize("name", ["characters", "synonyms", "greedy"])
def test_what_searches_comes_nearer_to_what_is_popular(name, view):
    assert (value(view, rewritten(name, view)) > value(view, originals(view))).all()


@pytest.mark.parametrize("name", ["characters", "synonyms", "greedy"])
def test_what_searches_climbs_what_a_vector_is_worth_to_each_item(name, view):
    wanted = dict(zip(TARGETS.tolist(), encode(["western drama", "window winter"]), strict=True))

    def worth(vectors, items):
        return np.array(
            [v @ wanted[item] for v, item in zip(vectors, items.tolist(), strict=True)], np.float64
        )

    informed = TextView(view.texts, view.counts, encode, worth)
    after = worth(encode(rewritten(name, informed)), TARGETS)
    assert (after > worth(encode(originals(view)), TARGETS)).all()
    assert (after >= worth(encode(rewritten(name, view)), TARGETS)).all()


def test_greedy_reaches_farther_than_words_without_a_search(view):
    assert value(view, rewritten("greedy", view)).mean() > value(view, rewritten("keywords", view)).mean()
    assert value(view, rewritten("greedy", view)).mean() > value(view, rewritten("prefix", view)).mean()


def test_keywords_are_those_of_popular_items(view):
    for before, after in zip(originals(view), rewritten("keywords", view, 2), strict=True):
        assert after.startswith(before)
        assert words_of(after.removeprefix(before)) == ["comedy", "musical"]


def test_a_prefix_leaves_the_text_whole(view):
    for before, after in zip(originals(view), rewritten("prefix", view), strict=True):
        assert after.endswith(before)
        assert len(after.split()) == len(before.split()) + BUDGET


def test_greedy_adds_words_of_the_catalogue_only(view):
    vocabulary = set(view.words)
    for before, after in zip(originals(view), rewritten("greedy", view), strict=True):
        added = after.removeprefix(before).split()
        assert set(added) <= vocabulary
        assert not set(added) & set(words_of(before))


def test_greedy_says_nothing_twice(view):
    comedy = encode(["comedy"])[0]
    eager = TextView(view.texts, view.counts, encode, lambda vectors, items: (vectors @ comedy).astype(float))
    for after in rewritten("greedy", eager):
        assert len(set(words_of(after))) == len(words_of(after))


def test_synonyms_come_from_the_catalogue_and_are_near(view):
    number = {word: place for place, word in enumerate(view.words)}
    exchanged = 0
    for before, after in zip(originals(view), rewritten("synonyms", view, 1), strict=True):
        for old, new in zip(words_of(before), words_of(after), strict=True):
            if old != new:
                assert view.word_vectors[number[old]] @ view.word_vectors[number[new]] >= 0.5
                exchanged += 1
    assert exchanged == len(TARGETS)


def test_characters_change_few_letters(view):
    for before, after in zip(originals(view), rewritten("characters", view, 1), strict=True):
        assert abs(len(before) - len(after)) <= 1
        assert len(set(enumerate(before)) - set(enumerate(after))) >= 1


def test_common_words_come_first_and_small_ones_not_at_all(view):
    assert set(view.words[:2]) == {"comedy", "musical"}
    assert "the" not in view.words


def test_importing_the_attacks_loads_no_text_encoder():
    code = "import sys, training.attacks; sys.exit('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=120).returncode == 0
