"""Maximal marginal relevance against its definition, one candidate at a time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.diversity import diverse


def unit(count, seed, dim=6):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def by_definition(vectors, scores, k, diversity):
    low, high = min(scores), max(scores)
    relevance = [(score - low) / (high - low) for score in scores]
    chosen = []
    while len(chosen) < min(k, len(scores)):

        def worth(i):
            alike = max(((1 + float(vectors[i] @ vectors[j])) / 2 for j in chosen), default=0.0)
            return (1 - diversity) * relevance[i] - diversity * alike

        left = [i for i in range(len(scores)) if i not in chosen]
        first = not chosen
        chosen.append(max(left, key=(lambda i: scores[i]) if first else worth))
    return chosen


@settings(deadline=None)
@given(st.integers(2, 25), st.integers(1, 30), st.sampled_from([0.1, 0.3, 0.5, 0.9, 1.0]), st.integers(0, 99))
def test_it_is_the_definition(count, k, diversity, seed):
    vectors = unit(count, seed)
    scores = np.sort(np.random.default_rng(seed).normal(size=count).astype(np.float32) * 20)[::-1]
    assert diverse(vectors, scores, k, diversity).tolist() == by_definition(vectors, scores, k, diversity)


def test_without_diversity_it_is_the_order_of_the_scores():
    scores = np.array([3.0, 1.0, 2.0, 2.0], np.float32)
    assert diverse(unit(4, 0), scores, 3, 0.0).tolist() == [0, 2, 3]


def test_of_two_that_are_alike_the_second_waits():
    vectors = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    scores = np.array([5.0, 4.9, 0.0], np.float32)
    assert diverse(vectors, scores, 3, 0.0).tolist() == [0, 1, 2]
    assert diverse(vectors, scores, 3, 0.9).tolist() == [0, 2, 1]


def test_the_order_does_not_depend_on_the_unit_of_the_scores():
    vectors, scores = unit(40, 1), np.linspace(1, 0, 40, dtype=np.float32)
    wanted = diverse(vectors, scores, 10, 0.5).tolist()
    assert wanted != list(range(10))
    assert diverse(vectors, scores * 32 - 8, 10, 0.5).tolist() == wanted


def test_equal_scores_leave_it_to_the_likeness():
    order = diverse(np.eye(3, dtype=np.float32), np.ones(3, np.float32), 5, 0.5)
    assert order.tolist() == [0, 1, 2]


@pytest.mark.parametrize("count", [0, 1])
def test_few_candidates_are_few_items(count):
    assert diverse(unit(count, 0), np.zeros(count, np.float32), 10, 0.5).tolist() == list(range(count))


def test_the_beginning_of_a_list_does_not_depend_on_its_length():
    vectors, scores = unit(60, 3), np.linspace(9, 1, 60, dtype=np.float32)
    assert diverse(vectors, scores, 40, 0.4)[:15].tolist() == diverse(vectors, scores, 15, 0.4).tolist()


def test_what_is_given_stays_as_it_is():
    scores = np.linspace(9, 1, 20, dtype=np.float32)
    diverse(unit(20, 3), scores, 10, 0.4)
    assert scores.tolist() == np.linspace(9, 1, 20, dtype=np.float32).tolist()
