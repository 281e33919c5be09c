"""Diversity: a list of items that are liked and unlike each other.

Maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998): the list grows by the item that is best by

    (1 − d) · relevance(i) − d · max over j already in the list of likeness(i, j)

Relevance is the score moved to 0..1 between the lowest and the highest of the candidates, likeness is
(1 + cosine) / 2, so both have the same range for every user and ``d`` means the same for all. Determinantal point
processes (Chen et al., NeurIPS 2018) serve the same purpose; they were left out because one way is enough, and this
one has a setting whose meaning can be told.
"""

import numpy as np

from serving.user_encoder import Floats
from streaming.rows import Int64


def diverse(vectors: Floats, scores: Floats, k: int, diversity: float) -> Int64:
    """Choose k of n candidates; equal ones in the order in which they come.

    Args:
        vectors: (n, d) float32 unit vectors of the candidates.
        scores: (n,) of any range; higher is better.
        k: wanted; at most n are returned.
        diversity: 0..1. With 0 this is a stable sort by score.

    Returns:
        (k,) int64 positions among the candidates, in the order in which they are shown.
    """
    k = min(k, len(scores))
    if diversity == 0 or k < 2:
        return np.argsort(-scores, kind="stable")[:k]
    spread = float(np.ptp(scores)) or 1.0
    value = (scores - scores.min()) * np.float32((1 - diversity) / spread)
    half = np.float32(diversity / 2)
    order = np.empty(k, np.int64)
    order[0] = chosen = int(scores.argmax())
    nearest = np.full(len(scores), -1, np.float32)  # the highest cosine with an item in the list
    for place in range(1, k):
        value[chosen] = -np.inf
        np.maximum(nearest, vectors @ vectors[chosen], out=nearest)
        order[place] = chosen = int((value - half * nearest).argmax())  # half · 1 is the same for all
    return order
