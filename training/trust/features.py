"""What a user did in a window, as numbers that tell organised fakes from people.

A fake user can be made to look like any real one; what an attack cannot hide is that it has a goal. Many users must
have the same few items that nobody asked for before, so those items *burst*: far more of a window's users have them
than their past lets expect. And the same users share them: the items are *had together* far more often than chance
would have it. Both are measured without the user himself, so a person who discovers a rare item is no suspect. The
rest describes pace, variety and taste, as in classical shilling detection (Chirita, Nejdl and Zamfir, WIDM 2005;
Burke, Mobasher, Williams and Bhaumik, KDD 2006); the co-rating structure follows group detectors (Mehta, AAAI 2007).

Legend: R users of a window, E their new events, I distinct items among those, F features, M suspicious items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data import Sequences
from training.progress import PopularityCounts

Floats = NDArray[np.float64]
Int64 = NDArray[np.int64]

NAMES = (
    "events",
    "context",
    "distinct",
    "newcomer",
    "unknown items",
    "mean popularity",
    "spread of popularity",
    "least popularity",
    "mean burst",
    "burst 1",
    "burst 3",
    "burst 5",
    "bursting",
    "surplus 1",
    "surplus 3",
    "surplus 5",
    "together",
    "most together",
    "together with",
    "median gap",
    "spread of gaps",
    "at once",
    "span",
)
_SUSPICIOUS = 256  # items whose co-occurrence is looked at; more cost M² memory and R·M² time
_BURSTING = np.log(4.0)


@dataclass(frozen=True)
class Behaviour:
    """Features (R, F) of the users of a window, and the pairs behind them for explanations.

    ``row``, ``item`` (P,): which user had which of the items ``hashes`` (I,); ``surplus`` (I,): how many standard
    deviations more users had each than its past lets expect.
    """

    features: Floats
    row: Int64
    item: Int64
    hashes: NDArray[np.uint64]
    surplus: Floats


def behaviour(window: Sequences, past: PopularityCounts) -> Behaviour:
    """Describe every row of a window by its new events.

    Args:
        window: R rows; what stands before ``target_from`` is context. past: counts of items before the window.

    Returns:
        (R, F) float64, columns as in `NAMES`; rows without a new event are zero but for the first two columns.
    """
    rows = len(window)
    sizes = np.diff(window.offsets)
    fresh = window.new_events()
    row = np.repeat(np.arange(rows), sizes)[fresh]
    hashes, item = np.unique(window.items[fresh], return_inverse=True)
    pairs = np.unique(row * max(len(hashes), 1) + item)  # each item of a user once
    pair_row, pair_item = np.divmod(pairs, max(len(hashes), 1))
    had = np.bincount(pair_item, minlength=len(hashes)).astype(np.float64)  # (I,) users
    others = had - 1.0  # what an item's users see of it beside themselves
    share = past.shares(hashes).astype(np.float64)
    expected = share * len(pairs)
    surplus = (others - expected) / np.sqrt(expected + 1.0)
    burst = np.log((np.maximum(others, 0) + 0.5) / (expected + 0.5))
    taste = np.log(share + 1.0 / max(past.counts.sum(), 1.0) / 2)

    out = np.zeros((rows, len(NAMES)))
    column = {name: out[:, place] for place, name in enumerate(NAMES)}
    events = np.bincount(row, minlength=rows)
    context = sizes - events
    kinds = np.bincount(pair_row, minlength=rows)
    some, counted = kinds > 0, np.maximum(kinds, 1)
    column["events"][:] = np.log1p(events)
    column["context"][:] = np.log1p(context)
    column["distinct"][:] = np.where(some, kinds / np.maximum(events, 1), 0)
    column["newcomer"][:] = some & (context == 0)

    def mean(values: Floats) -> Floats:
        return np.bincount(pair_row, values[pair_item], rows) / counted

    column["unknown items"][:] = mean((share == 0).astype(np.float64))
    column["mean popularity"][:] = mean(taste)
    variance = mean(taste**2) - column["mean popularity"] ** 2
    column["spread of popularity"][:] = np.sqrt(np.maximum(variance, 0))
    column["least popularity"][:] = -_top_mean(-taste[pair_item], pair_row, kinds, 1)
    column["mean burst"][:] = mean(burst)
    column["bursting"][:] = mean((burst > _BURSTING).astype(np.float64))
    for most in (1, 3, 5):
        column[f"burst {most}"][:] = _top_mean(burst[pair_item], pair_row, kinds, most)
        damped = np.sign(surplus) * np.log1p(np.abs(surplus))
        column[f"surplus {most}"][:] = _top_mean(damped[pair_item], pair_row, kinds, most)
    _together(column, pair_row, pair_item, had, surplus, rows)
    _pace(column, row, window.times[fresh], rows)
    return Behaviour(out, pair_row, pair_item, hashes, surplus)


def _top_mean(values: Floats, row: Int64, kinds: Int64, most: int) -> Floats:
    """(R,) mean of the ``most`` largest values (P,) of each row; missing ones count as 0; rows are in order."""
    order = np.lexsort((-values, row))
    first = np.concatenate([[0], np.cumsum(kinds)])[:-1]
    place = np.arange(len(values)) - first[row]
    chosen = place < most
    return np.bincount(row[chosen], values[order][chosen], len(kinds)) / most


def _together(
    column: dict[str, Floats], row: Int64, item: Int64, had: Floats, surplus: Floats, rows: int
) -> None:
    """How much more often than by chance others have the same suspicious items together."""
    picked = np.argsort(-surplus, kind="stable")[:_SUSPICIOUS]
    picked = picked[had[picked] > 1]
    place = np.full(len(had), -1)
    place[picked] = np.arange(len(picked))
    chosen = place[item] >= 0
    table = np.zeros((rows, len(picked)), np.float32)
    table[row[chosen], place[item[chosen]]] = 1.0
    both = table.T @ table
    chance = np.outer(had[picked], had[picked]) / max(rows, 1)
    lift = np.log1p(np.maximum(both - 1.0 - chance, 0) / np.sqrt(chance + 1.0)).astype(np.float32)
    np.fill_diagonal(lift, 0.0)
    held = table.sum(axis=1)
    pairs = np.maximum(held * (held - 1), 1)
    column["together"][:] = ((table @ lift) * table).sum(axis=1) / pairs
    if len(picked):  # squared, so that few strong ties are not lost among many weak ones
        column["most together"][:] = np.sqrt(((table @ lift**2) * table).max(axis=1))
    column["together with"][:] = np.log1p(held)


def _pace(column: dict[str, Floats], row: Int64, times: Int64, rows: int) -> None:
    """Gaps between the new events of a user; rows and times are in order."""
    inside = row[1:] == row[:-1]
    owner = row[1:][inside]
    gaps = np.log1p(np.diff(times)[inside] / 1000.0)
    count = np.bincount(owner, minlength=rows)
    some = np.maximum(count, 1)
    mean = np.bincount(owner, gaps, rows) / some
    column["spread of gaps"][:] = np.sqrt(np.maximum(np.bincount(owner, gaps**2, rows) / some - mean**2, 0))
    column["at once"][:] = np.bincount(owner, gaps == 0, rows) / some
    order = np.lexsort((gaps, owner))
    first = np.concatenate([[0], np.cumsum(count)])[:-1]
    there = count > 0
    column["median gap"][there] = gaps[order][first[there] + (count[there] - 1) // 2]
    span = np.bincount(owner, np.diff(times)[inside], rows) / 1000.0
    column["span"][:] = np.log1p(span)
