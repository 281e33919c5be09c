"""Retrieval: the k best items for a query vector.

Exact search is one matrix-vector product: at 10,000 items of 64 dimensions some 0.1 ms on one core, less
than the encoder takes, and it has nothing to build or to go stale. An approximate index pays from a few
hundred thousand items on; it would be another implementation of `Index`.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch

from serving.items import Bools
from streaming.rows import Int64

Float32 = np.ndarray[tuple[int, ...], np.dtype[np.float32]]

_DECIMALS = 4  # scores are compared, and shown, to this precision; nearer than that is a tie


class Index(Protocol):
    """Anything that finds the best rows for query vectors."""

    def search(self, queries: torch.Tensor, k: int, excluded: Sequence[Int64]) -> list[tuple[Int64, Float32]]:
        """Find up to k best rows per query, best first, without the excluded ones.

        Args:
            queries: (B, d) float32.
            k: rows wanted.
            excluded: B arrays of rows that may not be returned.

        Returns:
            B pairs of rows and scores, fewer than k where fewer are eligible. Equal scores stand in
            ascending row order, that is by item hash.
        """
        ...


class ExactIndex:
    """Scores every item.

    Args:
        vectors: (N, d) float32, L2-normalised.
        eligible: (N,) rows that may be returned.
        scale: multiplies the cosine.
    """

    def __init__(self, vectors: torch.Tensor, eligible: Bools, scale: float = 1.0) -> None:
        self._transposed = (vectors * scale).T.contiguous()  # (d, N): the faster layout for few queries
        self._masked = np.flatnonzero(~eligible)

    def search(self, queries: torch.Tensor, k: int, excluded: Sequence[Int64]) -> list[tuple[Int64, Float32]]:
        """See `Index.search`."""
        scores_BN = (queries @ self._transposed).numpy()
        scores_BN[:, self._masked] = -np.inf
        found = []
        for scores, rows in zip(scores_BN, excluded, strict=True):
            scores[rows] = -np.inf
            found.append(best(scores, k))
        return found


def best_of_both(found: tuple[Int64, Float32], more: tuple[Int64, Float32], k: int) -> tuple[Int64, Float32]:
    """Return the k best of two lists of rows and scores without a row in common, ordered as `best` orders."""
    return _ordered(np.concatenate([found[0], more[0]]), np.concatenate([found[1], more[1]]), k)


def best(scores: Float32, k: int) -> tuple[Int64, Float32]:
    """Return the rows of the k highest finite scores, best first, and those scores rounded.

    Scores are rounded before they are compared: the last bits of a product depend on how many queries it was
    computed for, and an order that a reader can check should not. Equal ones stand in ascending row order,
    at the border of the k too.
    """
    if k < len(scores):
        border = np.partition(scores, len(scores) - k)[len(scores) - k]
        margin = 10.0**-_DECIMALS
        rows = np.flatnonzero((scores >= border - margin) & np.isfinite(scores))
    else:
        rows = np.flatnonzero(np.isfinite(scores))
    return _ordered(rows, scores[rows], k)


def _ordered(rows: Int64, scores: Float32, k: int) -> tuple[Int64, Float32]:
    """The first k by rounded score, ties by row."""
    rounded = np.round(scores.astype(np.float64), _DECIMALS)
    order = np.lexsort((rows, -rounded))[:k]
    return rows[order], rounded[order].astype(np.float32)
