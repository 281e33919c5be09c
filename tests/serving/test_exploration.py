"""Lists that are drawn: the probabilities told with them are those they are drawn with."""

from itertools import permutations

import numpy as np
import pytest

from serving.exploration import _marginals, draw, new_seed
from serving.policy_config import ExplorationSettings

SCORES = np.array([2.0, 1.0, 0.5, -1.0, -3.0], np.float32)
EPSILON = ExplorationSettings(kind="epsilon", epsilon=0.3)
LUCE = ExplorationSettings(kind="plackett-luce", temperature=1.5)


def probability(order, kind):
    """Of a list, multiplied up from the definition."""
    total, left = 1.0, list(range(len(SCORES)))
    for item in order:
        if kind is EPSILON:
            total *= 0.3 / len(left) + 0.7 * (item == left[0])
        else:
            weights = np.exp(SCORES[left].astype(float) / 1.5)
            total *= weights[left.index(item)] / weights.sum()
        left.remove(item)
    return total


def surprising(counts, expected):
    """Whether a chi-square statistic lies more than five standard deviations above its mean."""
    statistic, freedom = ((counts - expected) ** 2 / expected).sum(), len(counts) - 1
    return statistic > freedom + 5 * np.sqrt(2 * freedom)


@pytest.mark.parametrize("kind", [EPSILON, LUCE], ids=["epsilon", "plackett-luce"])
def test_lists_are_drawn_as_often_as_they_say(kind):
    lists = list(permutations(range(5), 3))
    expected = np.array([probability(order, kind) for order in lists])
    assert expected.sum() == pytest.approx(1)
    counts, rounds = dict.fromkeys(lists, 0), 6000
    for seed in range(rounds):
        drawn = draw(SCORES, 3, kind, seed)
        order = tuple(drawn.order.tolist())
        counts[order] += 1
        assert drawn.log_probability == pytest.approx(np.log(probability(order, kind)))
    assert not surprising(np.array(list(counts.values())), expected * rounds)
    assert surprising(np.array(list(counts.values())), np.full(len(lists), rounds / len(lists)))


@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.3, 1.0])
def test_marginals_are_the_sum_over_all_lists(epsilon):
    exact = np.zeros((5, 3))
    for order in permutations(range(5), 3):
        chance, left = 1.0, list(range(5))
        for item in order:
            chance *= epsilon / len(left) + (1 - epsilon) * (item == left[0])
            left.remove(item)
        for place, item in enumerate(order):
            exact[item, place] += chance
    assert _marginals(5, 3, epsilon) == pytest.approx(exact)


def test_every_place_is_filled_and_no_item_stands_twice():
    table = _marginals(60, 20, 0.2)
    assert table.sum(axis=0) == pytest.approx(np.ones(20))
    assert (table.sum(axis=1) <= 1 + 1e-12).all()
    assert _marginals(8, 8, 0.2).sum(axis=1) == pytest.approx(np.ones(8))  # all are shown somewhere


def test_propensities_of_epsilon_are_those_of_the_places():
    for seed in range(50):
        drawn = draw(SCORES, 4, EPSILON, seed)
        assert drawn.propensities.tolist() == _marginals(5, 4, 0.3)[drawn.order, range(4)].tolist()


def test_propensities_of_plackett_luce_multiply_to_that_of_the_list():
    for seed in range(50):
        drawn = draw(SCORES, 5, LUCE, seed)
        assert np.log(drawn.propensities).sum() == pytest.approx(drawn.log_probability)
        assert drawn.propensities[-1] == pytest.approx(1)


@pytest.mark.parametrize("kind", [EPSILON, LUCE], ids=["epsilon", "plackett-luce"])
def test_a_seed_gives_the_list_again_and_longer_lists_begin_the_same(kind):
    scores = np.linspace(4, -4, 50).astype(np.float32)
    short, long = draw(scores, 10, kind, 7), draw(scores, 30, kind, 7)
    assert long.order[:10].tolist() == short.order.tolist()
    assert long.propensities[:10] == pytest.approx(short.propensities)
    assert sorted(draw(scores, 99, kind, 7).order) == list(range(50))
    others = {tuple(draw(scores, 10, kind, seed).order) for seed in range(20)}
    assert len(others) > 10


def test_extremes():
    best_first = list(range(5))
    assert draw(SCORES, 5, ExplorationSettings(kind="epsilon", epsilon=0), 1).order.tolist() == best_first
    cold = draw(SCORES, 5, ExplorationSettings(kind="plackett-luce", temperature=1e-4), 1)
    assert cold.order.tolist() == best_first
    assert cold.propensities == pytest.approx(np.ones(5))
    assert len(draw(SCORES[:0], 5, EPSILON, 1).order) == len(draw(SCORES[:0], 5, LUCE, 1).order) == 0
    assert 0 <= new_seed() < 2**63


def test_a_seed_means_the_same_for_ever():
    assert draw(SCORES, 5, LUCE, 42).order.tolist() == [0, 2, 1, 3, 4]
    assert draw(SCORES, 5, ExplorationSettings(kind="epsilon", epsilon=1.0), 42).order.tolist() == [
        2,
        3,
        4,
        1,
        0,
    ]
