"""Which of the items shown were followed by a success, and what that says of lists that were not shown."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.experiment_data import Successes
from streaming.hashing import UInt64, stable_hash
from streaming.rows import Int64

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """Items shown, one row each, and the impressions they were shown in.

    Attributes:
        impression: (S,) row of the impression. item: (S,) hash. propensity: (S,) NaN where none was logged.
        greedy: (S,) whether it stands where its score alone would put it among those shown.
    """

    impression: Int64
    item: UInt64
    propensity: Floats
    greedy: Bools


def slots_of(impressions: pa.Table) -> Slots:
    """One row per item shown."""
    items = impressions["items"].combine_chunks()
    lengths = pc.list_value_length(items).to_numpy(zero_copy_only=False).astype(np.int64)
    impression = np.repeat(np.arange(len(items)), lengths)
    scores = _flat(impressions["scores"], lengths)
    place = np.arange(len(impression)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    ranked = np.empty(len(impression), np.int64)
    ranked[np.lexsort((place, -scores, impression))] = place  # by score within each impression
    return Slots(
        impression,
        stable_hash(pc.list_flatten(items)),
        _flat(impressions["propensities"], lengths),
        ranked == place,
    )


def _flat(column: pa.ChunkedArray, lengths: Int64) -> Floats:
    """A list column as flat floats, NaN for lists that are missing or of another length."""
    column = column.combine_chunks()
    own = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    flat = np.full(int(lengths.sum()), np.nan)
    fits = own == lengths
    values = pc.list_flatten(column.filter(pa.array(fits))).to_numpy(zero_copy_only=False)
    flat[np.repeat(fits, lengths)] = values
    return flat


@dataclass(frozen=True)
class Attributed:
    """Items shown that were followed by a success: (A,) rows of `Slots` and the time of the first success on each."""

    slot: Int64
    time_ms: Int64


def attributed(slots: Slots, users: UInt64, times: Int64, successes: Successes, window_ms: int) -> Attributed:
    """Find the newest impression of a success's item to its user that is not older than the window.

    Args:
        users, times: (I,) of the impressions.
    """
    shown = len(slots.item)
    user = np.concatenate([users[slots.impression], successes.user])
    item = np.concatenate([slots.item, successes.item])
    when = np.concatenate([times[slots.impression], successes.time_ms])
    is_success = np.arange(len(user)) >= shown
    order = np.lexsort((is_success, when, item, user))  # what is shown at the same moment comes first
    place = np.where(~is_success[order], np.arange(len(order)), -1)
    newest = np.maximum.accumulate(place) if len(place) else place
    found = is_success[order] & (newest >= 0)
    mine, theirs = order[found], order[newest[found]]
    fits = (
        (user[mine] == user[theirs]) & (item[mine] == item[theirs]) & (when[mine] - when[theirs] <= window_ms)
    )
    slot, time_ms = theirs[fits], when[mine[fits]]  # of one slot, in the order of time
    distinct, first = np.unique(slot, return_index=True)
    return Attributed(distinct, time_ms[first])


def without_exploration(slots: Slots, clicked: Bools, mine: Bools) -> dict[str, Any] | None:
    """What the success per item shown would be, had the scores alone decided; None without logged propensities.

    The shown item of a slot counts with w = [it stands where its score puts it] / propensity, else not at all. IPS is
    the mean of w·success; SNIPS divides by the mean of w: a little biased, far less noisy (Swaminathan and Joachims,
    2015).
    """
    usable = mine & (slots.propensity > 0)
    if not usable.any():
        return None
    weight = np.where(slots.greedy[usable], 1 / slots.propensity[usable], 0.0)
    reward = clicked[usable].astype(np.float64)
    total = weight.sum()
    return {
        "ips": float((weight * reward).mean()),
        "snips": float((weight * reward).sum() / total) if total else None,
        "effective_items": float(total**2 / (weight**2).sum()) if total else 0.0,
        "largest_weight": float(weight.max()),
    }
