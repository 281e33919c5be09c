"""Retrieval against a plain sort, ties and borders included; runs over every index by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serving.index import NOTHING, ExactIndex, Wanted, best
from serving.metrics import RequestWindow
from serving.policy import span

INDEXES = {"exact": ExactIndex}


def unit_vectors(count, seed, dim=8):
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@given(
    st.lists(st.sampled_from([0.5, 0.25, 0.125, -1.0, -np.inf]), min_size=1, max_size=30), st.integers(1, 35)
)
def test_best_is_a_sort_by_score_then_row(scores, k):
    expected = sorted((-score, row) for row, score in enumerate(scores) if np.isfinite(score))[:k]
    rows, found = best(np.array(scores, np.float32), k)
    assert rows.tolist() == [row for _, row in expected]
    assert found.tolist() == [-negative for negative, _ in expected]


def test_scores_that_differ_by_less_than_is_shown_are_ties():
    rows, found = best(np.array([0.5, 0.50001, 0.49999, 0.2], np.float32), 3)
    assert rows.tolist() == [0, 1, 2]
    assert len(set(found.tolist())) == 1


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_finds_what_a_plain_sort_finds(name):
    vectors, queries = unit_vectors(200, 0), unit_vectors(5, 1)
    eligible = np.arange(200) % 3 != 0
    excluded = [np.arange(q * 10) for q in range(5)]
    found = INDEXES[name](vectors, eligible, 4.0).search(queries, [Wanted(7, rows) for rows in excluded])
    scores = 4.0 * queries @ vectors.T
    for query, (rows, shown) in enumerate(found):
        allowed = [r for r in np.argsort(-scores[query]) if eligible[r] and r not in excluded[query]]
        assert rows.tolist() == allowed[:7]
        assert shown == pytest.approx(scores[query][rows], abs=1e-4)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_returns_fewer_where_fewer_are_eligible(name):
    index = INDEXES[name](np.eye(4, dtype=np.float32), np.array([True, False, True, True]))
    [(rows, _)] = index.search(np.eye(4, dtype=np.float32)[:1], [Wanted(10, np.array([0]))])
    assert rows.tolist() == [2, 3]


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_keeps_to_what_is_allowed_named_and_added(name):
    vectors, query = unit_vectors(300, 0), unit_vectors(1, 1)
    index = INDEXES[name](vectors, np.arange(300) % 5 != 0, 1.0)
    scores = (query @ vectors.T)[0]
    allowed = np.arange(300) % 2 == 0
    offsets = np.zeros(300, np.float32)
    offsets[7] = offsets[8] = 10
    named = np.array([3, 5, 7, 8, 10])
    found = index.search(
        query.repeat(4, axis=0),
        [
            Wanted(4, NOTHING, allowed=allowed),
            Wanted(2, NOTHING, offsets=offsets),
            Wanted(9, np.array([3]), among=named, offsets=offsets),
            Wanted(300, NOTHING),
        ],
    )
    even = [row for row in np.argsort(-scores) if row % 2 == 0 and row % 5]
    assert found[0][0].tolist() == even[:4]
    assert sorted(found[1][0]) == [7, 8]
    assert found[1][1] == pytest.approx(10 + scores[found[1][0]], abs=1e-4)
    # rows that are named need not be in the index: 5 and 10 are not
    assert found[2][0].tolist() == sorted([5, 7, 8, 10], key=lambda row: -scores[row] - offsets[row])
    assert len(found[3][0]) == 240


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(0, 5))
def test_best_of_many_is_best_of_all(count, k, seed):
    scores = np.random.default_rng(seed).normal(size=count).astype(np.float32).round(2)
    scores[::7] = -np.inf
    expected = sorted((-score, row) for row, score in enumerate(scores) if np.isfinite(score))[:k]
    assert best(scores, k)[0].tolist() == [row for _, row in expected]


def test_a_request_window_keeps_the_newest_and_counts_all():
    window = RequestWindow(100)
    assert window.summary() == {"p50": None, "p99": None, "count": 0, "errors": 0}
    for duration in [5.0] * 50 + [0.002] * 99 + [0.1]:
        window.add(duration, 200)
    window.add(0.002, 503)
    assert window.summary() == {"p50": 2.0, "p99": pytest.approx(3, abs=1), "count": 151, "errors": 1}


@pytest.mark.parametrize(
    ("ms", "said"),
    [(0, "moments"), (1000, "1 s"), (200_000, "3 min"), (7_200_000, "2 h"), (86_400_000, "1 d")],
)
def test_spans_in_words(ms, said):
    assert span(ms) == said
