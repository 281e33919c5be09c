"""How varied generated histories are beside real ones: what a generator that writes one for everybody fails.

A history is a set in order: a row of item codes in time order, no item twice, `NONE` behind the last.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Int64 = NDArray[np.int64]
Floats = NDArray[np.float64]

NONE = -1  # where a history has no event


def newest(codes: Int64, offsets: Int64, length: int) -> Int64:
    """Histories from sequences laid end to end.

    Args:
        codes: (E,) item codes. offsets: (R + 1,), row r is ``[offsets[r], offsets[r + 1])``. length: L.

    Returns:
        (R, L) int64: the newest L distinct items of each row, each where it came last, from the left in time order;
        `NONE` behind them.
    """
    rows = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    order = np.lexsort((np.arange(len(codes)), codes, rows))
    last = np.ones(len(codes), bool)
    last[order[:-1]] = (rows[order][1:] != rows[order][:-1]) | (codes[order][1:] != codes[order][:-1])
    rows, codes = rows[last], codes[last]
    counts = np.bincount(rows, minlength=len(offsets) - 1)
    place = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
    place -= np.maximum(counts - length, 0)[rows]
    kept = place >= 0
    histories = np.full((len(offsets) - 1, length), NONE, np.int64)
    histories[rows[kept], place[kept]] = codes[kept]
    return histories


@dataclass(frozen=True)
class Variety:
    """Generated histories beside as many real ones.

    Attributes:
        distinct: distinct items among the generated over those among the real.
        entropy: entropy of the items' frequencies, generated over real.
        overlap, real_overlap: mean Jaccard index of two histories, generated and real.
        divergence: Jensen-Shannon divergence of the items' frequencies, bits (0 = alike, 1 = nothing in common).
        collapsed: half of the items are gone, or a fifth of the entropy, or histories are twice as alike.
    """

    distinct: float
    entropy: float
    overlap: float
    real_overlap: float
    divergence: float

    @property
    def collapsed(self) -> bool:
        """The verdict."""
        return self.distinct < 0.5 or self.entropy < 0.8 or self.overlap > 2 * self.real_overlap + 0.02


def variety(generated: Int64, real: Int64) -> Variety:
    """Compare generated histories (R, L) with real ones (R', L'), `NONE` where there is no event.

    As many are taken of either, so that sets of unequal size do not differ by their size alone.

    Raises:
        ValueError: two of either are needed to be compared.
    """
    rows = min(len(generated), len(real))
    if rows < 2:
        raise ValueError(f"expected two histories on either side; got {len(generated)} and {len(real)}")
    items, places = np.unique(
        np.concatenate([generated[:rows].ravel(), real[:rows].ravel()]), return_inverse=True
    )
    ours, theirs = np.split(places, [generated[:rows].size])
    present = items != NONE
    had = [_had(part, rows, len(items))[:, present] for part in (ours, theirs)]
    one, other = (part.sum(axis=0) / max(part.sum(), 1) for part in had)
    between = (_entropy((one + other) / 2) - (_entropy(one) + _entropy(other)) / 2) / math.log(2)
    return Variety(
        distinct=float((one > 0).sum() / max((other > 0).sum(), 1)),
        entropy=_entropy(one) / max(_entropy(other), 1e-12),
        overlap=_jaccard(had[0]),
        real_overlap=_jaccard(had[1]),
        divergence=between,
    )


def _had(places: Int64, rows: int, items: int) -> Floats:
    had = np.zeros((rows, items))
    had[np.repeat(np.arange(rows), len(places) // rows), places] = 1.0
    return had


def _entropy(share: Floats) -> float:
    some = share[share > 0]
    return float(-(some * np.log(some)).sum())


def _jaccard(had: Floats) -> float:
    both = had @ had.T
    sizes = np.diagonal(both)
    index = both / np.maximum(sizes[:, None] + sizes[None, :] - both, 1)
    pairs = len(had) * (len(had) - 1)
    return float((index.sum() - np.diagonal(index).sum()) / pairs)
