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
    return float(np.mean(np.where(ranks <= k, 1.0 / np.log2(ranks + 1.0), 0.0))) if len(ranks) else 0.0


def mrr(ranks: Ranks, k: int = 10) -> float:
    """MRR@k; 0 for no queries."""
    return float(np.mean(np.where(ranks <= k, 1.0 / ranks, 0.0))) if len(ranks) else 0.0


def summary(ranks: Ranks, k: int = 10) -> dict[str, float]:
    """HR, NDCG and MRR at k by name, as the gate and eval.json use them."""
    return {f"hit_rate@{k}": hit_rate(ranks, k), f"ndcg@{k}": ndcg(ranks, k), f"mrr@{k}": mrr(ranks, k)}
