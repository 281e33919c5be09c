"""Retrieval: the k best items for a query vector.

Exact search is one matrix product: among 10,000 items of 64 dimensions some 30 µs on one core with finding the best
of them, among 100,000 some 0.4 ms, and it has nothing to build or to go stale. `serving.approximate` is another
implementation, for larger catalogues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Protocol

import numpy as np

from serving.items import Bools
from serving.user_encoder import Floats
from streaming.rows import Int64

_DECIMALS = 4  # scores are compared, and shown, to this precision; nearer than that is a tie
_BLOCKS = 16  # scores in a block of which only the highest is looked at first


@dataclass(slots=True)  # made for each request: frozen ones take three times as long
class Wanted:
    """What may be found for one query.

    Attributes:
        k: rows wanted. excluded: rows that may not be found.
        allowed: (N,) the rows that may be found; None: all that the index holds.
        among: rows to choose from, instead of all; the index need not hold them.
        offsets: (N,) float32 added to the scores; None: nothing.
    """

    k: int
    excluded: Int64
    allowed: Bools | None = None
    among: Int64 | None = None
    offsets: Floats | None = None


class Index(Protocol):
    """Anything that finds the best rows for query vectors."""

    def search(self, queries: Floats, wanted: Sequence[Wanted]) -> list[tuple[Int64, Floats]]:
        """Find up to k rows per query, best first.

        Args:
            queries: (B, d) float32.
            wanted: B, one per query.

        Returns:
            B pairs of rows and scores, fewer than k where fewer are eligible. Equal scores stand in
            ascending row order, that is by item hash.
        """
        ...


class ExactIndex:
    """Scores every item.

    Args:
        vectors: (N, d) float32, L2-normalised.
        eligible: (N,) rows that may be found.
        scale: multiplies the cosine.
    """

    def __init__(self, vectors: Floats, eligible: Bools, scale: float = 1.0) -> None:
        self._vectors, self._scale = vectors, np.float32(scale)
        self._transposed = np.ascontiguousarray(vectors.T * self._scale)  # (d, N): the layout for few queries
        self._masked = np.flatnonzero(~eligible)

    def search(self, queries: Floats, wanted: Sequence[Wanted]) -> list[tuple[Int64, Floats]]:
        """See `Index.search`."""
        whole = [place for place, one in enumerate(wanted) if one.among is None]
        found: list[tuple[Int64, Floats]] = [(NOTHING, NO_SCORES)] * len(wanted)
        for place, one in enumerate(wanted):
            if one.among is not None:
                found[place] = among(self._vectors, queries[place] * self._scale, one)
        if whole:
            scores_BN = queries[whole] @ self._transposed
            scores_BN[:, self._masked] = -np.inf
            for place, scores in zip(whole, scores_BN, strict=True):
                one = wanted[place]
                if one.offsets is not None:
                    np.add(scores, one.offsets, out=scores)
                if one.allowed is not None:
                    scores[~one.allowed] = -np.inf
                scores[one.excluded] = -np.inf
            borders = _borders(scores_BN, max(wanted[place].k for place in whole)).tolist()
            for place, scores, border in zip(whole, scores_BN, borders, strict=True):
                found[place] = _above(scores, border, wanted[place].k)
        return found


NOTHING = np.empty(0, np.int64)
NO_SCORES = np.empty(0, np.float32)


def among(vectors: Floats, query: Floats, wanted: Wanted) -> tuple[Int64, Floats]:
    """The best of the rows named: ``vectors`` (N, d), ``query`` (d,) with the scale in it."""
    rows = np.unique(wanted.among) if wanted.among is not None else np.arange(len(vectors))
    if wanted.allowed is not None:
        rows = rows[wanted.allowed[rows]]
    rows = rows[~np.isin(rows, wanted.excluded)]
    scores = vectors[rows] @ query
    if wanted.offsets is not None:
        scores = scores + wanted.offsets[rows]
    return ordered(rows, scores, wanted.k)


def best_of_both(found: tuple[Int64, Floats], more: tuple[Int64, Floats], k: int) -> tuple[Int64, Floats]:
    """Return the k best of two lists of rows and scores without a row in common, ordered as `best` orders."""
    return ordered(np.concatenate([found[0], more[0]]), np.concatenate([found[1], more[1]]), k)


def best(scores: Floats, k: int) -> tuple[Int64, Floats]:
    """Return the rows of the k highest finite scores, best first, and those scores rounded.

    Scores are rounded before they are compared: the last bits of a product depend on how many queries it was
    computed for, and an order that a reader can check should not. Equal ones stand in ascending row order,
    at the border of the k too.
    """
    return _above(scores, float(_borders(scores[None], k)[0]), k)


def _borders(scores: Floats, k: int) -> Floats:
    """(B,) of scores (B, N): not above the k-th highest of each row; -inf where there are not as many.

    The k-th highest of the blocks' maxima is not above the k-th highest score: a border that is cheap to find.
    """
    B, N = scores.shape
    if k >= N:
        return np.full(B, -np.inf, np.float32)
    blocks = N // _BLOCKS
    heads = scores
    if blocks > 4 * k:
        heads = scores[:, : blocks * _BLOCKS].reshape(B, _BLOCKS, blocks).max(axis=1)
    at = heads.shape[1] - k
    borders: Floats = np.partition(heads, at, axis=1)[:, at] - np.float32(10.0**-_DECIMALS)
    return borders


def _above(scores: Floats, border: float, k: int) -> tuple[Int64, Floats]:
    """The k best of the finite scores that are not below the border, as `best` gives them."""
    rows = np.flatnonzero(scores >= border if isfinite(border) else np.isfinite(scores))
    return ordered(rows, scores[rows], k)


def ordered(rows: Int64, scores: Floats, k: int) -> tuple[Int64, Floats]:
    """The first k by rounded score, ties by row."""
    rounded = np.round(scores.astype(np.float64), _DECIMALS)
    order = np.lexsort((rows, -rounded))[:k]
    return rows[order], rounded[order].astype(np.float32)
