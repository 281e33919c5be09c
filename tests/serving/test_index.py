"""Retrieval against a plain sort, ties and borders included; runs over every index by name."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from serving.index import ExactIndex, best
from serving.metrics import RequestWindow
from serving.policy import span

INDEXES = {"exact": ExactIndex}


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
    generator = torch.Generator().manual_seed(0)
    vectors = torch.nn.functional.normalize(torch.randn(200, 8, generator=generator), dim=1)
    queries = torch.nn.functional.normalize(torch.randn(5, 8, generator=generator), dim=1)
    eligible = np.arange(200) % 3 != 0
    excluded = [np.arange(q * 10) for q in range(5)]
    found = INDEXES[name](vectors, eligible, 4.0).search(queries, 7, excluded)
    scores = 4.0 * (queries @ vectors.T).numpy()
    for query, (rows, shown) in enumerate(found):
        allowed = [r for r in np.argsort(-scores[query]) if eligible[r] and r not in excluded[query]]
        assert rows.tolist() == allowed[:7]
        assert shown == pytest.approx(scores[query][rows], abs=1e-4)


@pytest.mark.parametrize("name", INDEXES)
def test_an_index_returns_fewer_where_fewer_are_eligible(name):
    index = INDEXES[name](torch.eye(4), np.array([True, False, True, True]))
    [(rows, _)] = index.search(torch.eye(4)[:1], 10, [np.array([0])])
    assert rows.tolist() == [2, 3]


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
