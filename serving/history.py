"""What a user did lately, as the scorer reads it: a state row, inline events, or both merged."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.models import InlineEvent
from streaming.hashing import UInt64, hash_one
from streaming.rows import NEVER, Int64


@dataclass(slots=True)  # made for each request: frozen ones take three times as long
class History:
    """The newest events of one user in event-time order, newest last; all of length n."""

    items: UInt64
    times: Int64  # epoch ms
    types: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.items)


EMPTY = History(np.empty(0, np.uint64), np.empty(0, np.int64), np.empty(0, np.uint8))


def from_row(row: np.void) -> History:
    """Take the valid part of a state row (right-aligned, see `streaming.rows.row_dtype`)."""
    events = row["events"]
    valid = events[len(events) - int(row["count"]) :]
    return History(valid["item"].copy(), valid["time"].copy(), valid["type"].copy())


def merged(
    stored: History, inline: Sequence[InlineEvent], codes: dict[str, int], now_ms: int, length: int
) -> History:
    """Append inline events to stored ones, as the store would have: by event time, ties by arrival.

    Args:
        stored: what the state holds.
        inline: events told with the request; without a time they count as newest.
        codes: event type to code.
        now_ms: the time of the request, epoch ms.
        length: newest events kept.

    Raises:
        KeyError: a type that is not in `codes`.
    """
    if not inline:
        return stored
    latest = max(now_ms, int(stored.times[-1]) if len(stored) else NEVER)
    times = np.array([latest if e.timestamp is None else e.timestamp for e in inline], np.int64)
    all_times = np.concatenate([stored.times, times])
    newest = np.argsort(all_times, kind="stable")[-length:]
    items = np.array([hash_one(event.item_id) for event in inline], np.uint64)
    types = np.array([codes[event.type] for event in inline], np.uint8)
    return History(
        np.concatenate([stored.items, items])[newest],
        all_times[newest],
        np.concatenate([stored.types, types])[newest],
    )
