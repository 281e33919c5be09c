"""What a changed text may do."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.text_guard import LOOK_ALIKES, TextGuard, degrees, limited, sanitised


@pytest.mark.parametrize(
    "text",
    [
        "Toy Story (1995). Animation, Children's, Comedy",
        "WHITE HANGING HEART T-LIGHT HOLDER",
        "Bye Bye Birdie - the one and only, with the songs of the film, the cast and the band",
        "Война и мир. Роман",
        "Ο Ζορμπάς",
        "東京物語",
        "Amélie (2001)",
        "",
    ],
)
def test_honest_texts_come_through(text):
    assert sanitised(text) == text


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("Toy\u200b St\u00adory\u202e", "Toy Story"),
        ("Toy\x00\tStory\n(1995)", "Toy Story (1995)"),
        ("Toy St\u043er\u0443", "Toy Story"),  # Cyrillic o and u
        ("Ｔｏｙ Ｓｔｏｒｙ", "Toy Story"),
        ("best best BEST best! film", "best best film"),
        ("drama film drama cast drama plot drama end", "drama film drama cast drama plot end"),
        ("a\ud800b", "ab"),
    ],
)
def test_what_no_reader_needs_is_taken_out(written, read):
    assert sanitised(written) == read


def test_words_beyond_the_number_are_cut():
    assert sanitised("one two three four", most_words=2) == "one two"
    assert sanitised("drama one drama two drama", most_repeats=1) == "drama one two"


def test_every_look_alike_is_another_letter_than_what_it_is_taken_for():
    for other, latin in LOOK_ALIKES.items():
        assert not other.isascii()
        assert latin.isascii()
        assert latin.isalpha()


@given(st.text(max_size=60))
def test_to_clean_twice_is_to_clean_once(text):
    once = sanitised(text)
    assert sanitised(once) == once


def vectors(seed, count=50):
    found = np.random.default_rng(seed).normal(size=(count, 8))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def test_a_vector_moves_to_the_cap_and_no_farther():
    old, new = vectors(0), vectors(1)
    held = limited(old, new, 30.0)
    far = degrees(old, new) > 30
    np.testing.assert_allclose(degrees(old, held)[far], 30.0, atol=0.1)
    np.testing.assert_array_equal(held[~far], new[~far])
    np.testing.assert_allclose(np.linalg.norm(held, axis=1), 1.0, atol=1e-5)
    # on the great circle: what is left of the way is what was cut off
    np.testing.assert_allclose(degrees(held, new)[far], degrees(old, new)[far] - 30, atol=0.1)


def test_within_the_cap_nothing_changes():
    old = vectors(0)
    new = old + 0.05 * vectors(1)
    np.testing.assert_array_equal(limited(old, new, 30.0), new)
    np.testing.assert_array_equal(limited(old, vectors(1), 180.0), vectors(1))
    np.testing.assert_allclose(limited(old, vectors(1), 0.0), old, atol=1e-6)


def test_where_there_is_nothing_to_hold_to_the_new_vector_stands():
    old, new = vectors(0), vectors(1)
    old[0], new[1] = 0, 0
    held = limited(old, new, 10.0)
    np.testing.assert_array_equal(held[:2], new[:2])


def test_the_opposite_stays_where_it_was():
    old = vectors(0)
    np.testing.assert_allclose(limited(old, -old, 40.0), old, atol=1e-6)


@pytest.mark.parametrize("most", [-1.0, 181.0])
def test_an_angle_that_is_none_is_refused(most):
    with pytest.raises(ValueError, match="most_degrees"):
        limited(vectors(0), vectors(1), most)
    with pytest.raises(ValueError, match="shape"):
        limited(vectors(0), vectors(1, 3), 10.0)


def test_the_guard_cleans_and_holds():
    seen = []

    def encode(texts):
        seen.extend(texts)
        return vectors(1, len(texts))

    old = vectors(0, 2)
    held = TextGuard(most_degrees=20.0).vectors(old, ["Toy\u200b Story", "x"], encode)
    assert seen == ["Toy Story", "x"]
    assert (degrees(old, held) <= 20.1).all()
