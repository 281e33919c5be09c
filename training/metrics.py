"""Ranking metrics from ranks, vectorised.

With one relevant item per query at rank r (1 = best):
HR@k = [r <= k], NDCG@k = [r <= k] / log2(r + 1), MRR@k = [r <= k] / r, each averaged over queries.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Ranks = NDArray[np.float64]


def ranks_of(scores: Tensor, targets: Tensor, excluded: Tensor | None = None) -> Ranks:
    """Rank of each query's target among all items; ties share the middle rank.

    A score that is not finite cannot win: a query with such a target gets the last rank, and such competitors count
    as ahead, so a model that puts out NaN is seen as the worst there is.

    Args:
        scores: (T, N) float.
        targets: (T,) int64 columns.
        excluded: (T, N) bool, items left out of the ranking (the target itself never is).

    Returns:
        (T,) float64, 1 = best; halves where ties split.
    """
    own = scores.gather(1, targets[:, None])
    ahead = ~(scores <= own)
    level = scores == own
    if excluded is not None:
        ahead, level = ahead & ~excluded, level & ~excluded
    at = torch.arange(len(targets), device=scores.device)
    ahead[at, targets] = False
    level[at, targets] = False
    ranks = 1.0 + ahead.sum(1).double() + level.sum(1).double() / 2
    last = torch.full_like(ranks, float(scores.shape[1]))
    return np.asarray(torch.where(torch.isfinite(own[:, 0]), ranks, last).cpu().numpy(), dtype=np.float64)


def hit_rate(ranks: Ranks, k: int = 10) -> float:
    """HR@k; 0 for no queries."""
    return float(np.mean(ranks <= k)) if len(ranks) else 0.0


def ndcg(ranks: Ranks, k: int = 10) -> float:
    """NDCG@k with one relevant item; 0 for no queries."""
    return float(np.mean(reciprocal_log(ranks, k))) if len(ranks) else 0.0


def mrr(ranks: Ranks, k: int = 10) -> float:
    """MRR@k; 0 for no queries."""
    return float(np.mean(np.where(ranks <= k, 1.0 / ranks, 0.0))) if len(ranks) else 0.0


def summary(ranks: Ranks, k: int = 10) -> dict[str, float]:
    """HR, NDCG and MRR at k by name, as the gate and eval.json use them."""
    return {f"hit_rate@{k}": hit_rate(ranks, k), f"ndcg@{k}": ndcg(ranks, k), f"mrr@{k}": mrr(ranks, k)}


def reciprocal_log(ranks: Ranks, k: int = 10) -> Ranks:
    """(T,) each query's share in NDCG@k."""
    return np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0)


def bootstrap(
    values: Ranks, groups: NDArray[np.int64], resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95% percentile interval of a mean whose values come in groups (users), which are resampled whole.

    Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; groups with replacement.

    Args:
        values: (T,). groups: (T,) of each value.
    """
    if len(values) == 0:
        return 0.0, 0.0
    _, group = np.unique(groups, return_inverse=True)
    sums, sizes = np.bincount(group, values), np.bincount(group)
    rng = np.random.default_rng(seed)
    means = np.empty(resamples)
    for number in range(resamples):
        times = np.bincount(rng.integers(len(sums), size=len(sums)), minlength=len(sums))
        means[number] = (times @ sums) / (times @ sizes)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def coverage(recommended: NDArray[np.int64], num_items: int) -> float:
    """Share of the catalogue that stands in any of the lists (Q, k)."""
    return len(np.unique(recommended)) / num_items if num_items else 0.0


def gini(recommended: NDArray[np.int64], num_items: int) -> float:
    """Gini coefficient of how often items are recommended: 0 = all alike, 1 = one item takes all.

    G = sum_i (2i - n - 1) x_i / (n sum x), x ascending, i from 1 (Shani and Gunawardana 2011, section 8.3.2.2).
    """
    counts = np.sort(np.bincount(recommended.ravel(), minlength=num_items)).astype(np.float64)
    if counts.sum() == 0:
        return 0.0
    place = np.arange(1, num_items + 1)
    return float(((2 * place - num_items - 1) * counts).sum() / (num_items * counts.sum()))


def novelty(recommended: NDArray[np.int64], counts: NDArray[np.int64]) -> float:
    """Mean self-information of what is recommended, bits: -log2 of an item's share in the training events.

    An item without events counts as one with half an event (Zhou et al. 2010, PNAS 107(10), with that smoothing).
    """
    if recommended.size == 0:
        return 0.0
    share = np.maximum(counts, 0.5) / max(counts.sum(), 1)
    return float(-np.log2(share[recommended]).mean())
