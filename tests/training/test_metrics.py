import numpy as np
import pytest
import torch

from training.metrics import bootstrap, coverage, gini, hit_rate, mrr, ndcg, novelty, ranks_of, summary


def test_metrics_by_hand() -> None:
    ranks = np.array([1.0, 3.0, 11.0, 2.0])
    assert hit_rate(ranks, 10) == 0.75
    assert ndcg(ranks, 10) == pytest.approx((1 + 1 / 2 + 0 + 1 / np.log2(3)) / 4)
    assert mrr(ranks, 10) == pytest.approx((1 + 1 / 3 + 0 + 1 / 2) / 4)
    assert set(summary(ranks, 5)) == {"hit_rate@5", "ndcg@5", "mrr@5"}


def test_no_queries_score_zero() -> None:
    assert summary(np.zeros(0)) == {"hit_rate@10": 0.0, "ndcg@10": 0.0, "mrr@10": 0.0}


def test_ranks_count_better_items_and_split_ties() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.1, 0.5], [0.2, 0.2, 0.2, 0.2]])
    assert ranks_of(scores, torch.tensor([1, 0])).tolist() == [2.5, 2.5]


def test_excluded_items_do_not_compete_but_the_target_stays() -> None:
    scores = torch.tensor([[0.9, 0.5, 0.7]])
    assert ranks_of(scores, torch.tensor([1]), torch.tensor([[True, True, False]])).tolist() == [2.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_scores_that_are_not_finite_rank_last(bad: float) -> None:
    assert ranks_of(torch.full((1, 5), bad), torch.tensor([2])).tolist() == [5.0]
    one_bad = torch.tensor([[0.1, float("nan"), 0.3]])
    assert ranks_of(one_bad, torch.tensor([2])).tolist() == [2.0]


def test_what_is_recommended_is_described_by_hand() -> None:
    lists = np.array([[0, 1], [0, 2], [0, 1]])
    assert coverage(lists, 4) == 0.75
    # counts 0, 1, 2, 3: (-3·0 - 1·1 + 1·2 + 3·3) / (4·6)
    assert gini(lists, 4) == pytest.approx(10 / 24)
    assert gini(np.array([[0, 1], [2, 3]]), 4) == pytest.approx(0.0)
    # shares 1/2, 1/4, 1/4: 1 bit and 2 bits
    assert novelty(lists, np.array([4, 2, 2, 0])) == pytest.approx((3 * 1 + 3 * 2) / 6)
    assert novelty(np.array([[3]]), np.array([4, 2, 2, 0])) == pytest.approx(4.0)  # half an event of eight


def test_the_bootstrap_draws_users_and_not_events() -> None:
    """Ten users whose hundred values each are all alike: the interval is that of ten values, not of a thousand."""
    values = np.repeat(np.arange(10) % 2, 100).astype(float)
    low, high = bootstrap(values, np.repeat(np.arange(10), 100))
    assert (low, high) == pytest.approx((0.2, 0.8), abs=0.11)
    narrow = bootstrap(values, np.arange(1000))
    assert narrow[1] - narrow[0] < 0.1
    assert bootstrap(np.ones(4), np.arange(4)) == (1.0, 1.0)
    assert bootstrap(np.zeros(0), np.zeros(0, np.int64)) == (0.0, 0.0)
