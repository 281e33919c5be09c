"""Generated histories stand beside the real ones, and count less."""

import numpy as np

from tests.training.crowd import people
from training.augment import augmented
from training.config import GanConfig


def test_generated_users_join_the_window_at_their_weight() -> None:
    window = people(3)
    config = GanConfig(enabled=True, share=0.2, weight=0.3)
    one, two = (augmented(window, config, seed=1) for _ in range(2))
    made = len(one) - len(window)
    assert made == round(0.2 * len(window))
    np.testing.assert_array_equal(one.items, two.items)
    np.testing.assert_array_equal(one.items[: len(window.items)], window.items)
    assert one.trust[len(window) :].tolist() == [np.float32(0.3)] * made
    assert np.isin(one.items, window.items).all()
    assert not np.isin(one.users[len(window) :], window.users).any()
    new = one.times[len(window.items) :]
    assert new.min() >= window.times[window.new_events()].min()


def test_off_or_empty_it_changes_nothing() -> None:
    window = people(3)
    assert augmented(window, GanConfig(), seed=1) is window
    empty = window.take(np.zeros(0, np.int64))
    assert augmented(empty, GanConfig(enabled=True), seed=1) is empty
