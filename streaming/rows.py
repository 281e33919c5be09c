"""User state rows as columns: the layout, and the vectorised update that the store is built on.

A row is a fixed-size numpy record, so that a store is one array per batch of users and a reader maps it
without parsing. The update works on whole batches, and its result is *exactly* that of applying the
events one by one, whatever the batch boundaries: after a failure the same records come again in other
batches, and must lead to the same state.

Cost: 5,000 events of 900 users with 50 kept events each take some 10 ms on one core.
"""

from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from streaming.hashing import UInt64

Int64 = npt.NDArray[np.int64]
Rows = npt.NDArray[np.void]

NEVER = np.iinfo(np.int64).min  # "no time yet"


def row_dtype(length: int, num_types: int) -> np.dtype[np.void]:
    """Layout of one user's state.

    Sequences are right-aligned: the newest event stands at position `length - 1`, valid ones are the last
    `count`. Times are epoch milliseconds.

    Args:
        length: newest events kept per user (L).
        num_types: number of event types (T).
    """
    return np.dtype(
        [
            ("user", np.uint64),
            ("items", np.uint64, (length,)),
            ("times", np.int64, (length,)),
            ("types", np.uint8, (length,)),
            ("ids", np.uint64, (length,)),  # event-id hashes, for de-duplication
            ("count", np.int32),
            ("decayed", np.float64, (num_types,)),  # exponentially decayed event counts, as of `decayed_at`
            ("decayed_at", np.int64),
            ("first_ms", np.int64),
            ("last_ms", np.int64),
            ("total", np.int64),
            ("trust", np.float32),
            ("partition", np.int32),  # where the newest applied event of this user came from
            ("offset", np.int64),
            ("ingested_ms", np.int64),  # its Kafka record timestamp
            ("window", np.int64),  # newest window whose context was saved
        ]
    )


def blank_rows(users: UInt64, dtype: np.dtype[np.void]) -> Rows:
    """Rows of users never seen before."""
    rows = np.zeros(len(users), dtype)
    rows["user"] = users
    rows["times"] = NEVER
    rows["decayed_at"] = NEVER
    rows["last_ms"] = NEVER
    rows["first_ms"] = np.iinfo(np.int64).max
    rows["trust"] = 1.0
    rows["offset"] = -1
    rows["partition"] = -1
    rows["window"] = NEVER
    return rows


@dataclass(frozen=True)
class EventColumns:
    """Events of one logical shard as columns of length N, in arrival order."""

    user: UInt64
    item: UInt64
    event_id: UInt64  # 0: none
    time_ms: Int64
    type: npt.NDArray[np.uint8]
    offset: Int64
    ingested_ms: Int64
    window: Int64  # start of the window it counts into, epoch ms

    def __len__(self) -> int:
        return len(self.user)

    def take(self, selection: npt.NDArray[np.bool_] | Int64 | slice) -> "EventColumns":
        """Select events by mask, positions or slice."""
        return EventColumns(*(getattr(self, field.name)[selection] for field in fields(self)))


@dataclass(frozen=True)
class Touched:
    """What one update did, beside changing the rows."""

    kept: npt.NDArray[np.bool_]  # (N,) False: a duplicate, dropped
    contexts: list[tuple[int, Rows]]  # (window, rows as they stood before their first event in it)


def update_rows(
    rows: Rows, owner: Int64, events: EventColumns, partition: int, half_life_ms: float
) -> Touched:
    """Apply events to rows in place.

    Args:
        rows: (U,) state rows.
        owner: (N,) the row of each event.
        events: N events in arrival order.
        partition: Kafka partition they came from.
        half_life_ms: half-life of the decayed counts.
    """
    kept = np.ones(len(events), bool)
    contexts: list[tuple[int, Rows]] = []
    passes = _passes(rows, owner, events)
    for number in range(int(passes.max(initial=-1)) + 1):
        chosen = np.flatnonzero(passes == number)
        duplicate = _seen_before(rows, owner[chosen], events.event_id[chosen])
        kept[chosen[duplicate]] = False
        chosen = chosen[~duplicate]
        if not len(chosen):
            continue
        # sort by row; a stable sort keeps arrival order within a user
        chosen = chosen[np.argsort(owner[chosen], kind="stable")]
        part, part_owner = events.take(chosen), owner[chosen]
        touched, starts, counts = np.unique(part_owner, return_index=True, return_counts=True)
        contexts += _save_contexts(rows, touched, part.window[starts])
        _count(rows, touched, starts, part_owner, part, half_life_ms)
        _extend(rows, touched, starts, counts, part)
        last = starts + counts - 1
        rows["partition"][touched] = partition
        rows["offset"][touched] = part.offset[last]
        rows["ingested_ms"][touched] = part.ingested_ms[last]
    return Touched(kept, contexts)


def _passes(rows: Rows, owner: Int64, events: EventColumns) -> Int64:
    """Number each event with the pass in which it may be applied.

    Events of one user may share a pass only where doing them together equals doing them in turn: they
    count into one window, and none of them can be a duplicate. The k-th window change of a user opens its
    k-th pass; a user with a possible duplicate gets a pass per event.
    """
    order = np.argsort(owner, kind="stable")
    who, window, ids = owner[order], events.window[order], events.event_id[order]
    same_user = np.zeros(len(order), bool)
    same_user[1:] = who[1:] == who[:-1]
    step = np.zeros(len(order), np.int64)
    step[1:] = same_user[1:] & (window[1:] != window[:-1])

    suspect = _seen_before(rows, who, ids)
    pairs = np.lexsort((ids, who))
    twin = np.zeros(len(order), bool)
    twin[pairs[1:]] = (
        (who[pairs[1:]] == who[pairs[:-1]]) & (ids[pairs[1:]] == ids[pairs[:-1]]) & (ids[pairs[1:]] != 0)
    )
    careful = np.zeros(len(rows), bool)
    careful[who[suspect | twin]] = True
    step[careful[who] & same_user] = 1

    total = np.cumsum(step)
    first = np.flatnonzero(~same_user)
    base = np.repeat(total[first], np.diff(np.append(first, len(order))))
    passes = np.empty(len(order), np.int64)
    passes[order] = total - base
    return passes


def _seen_before(rows: Rows, owner: Int64, ids: UInt64) -> npt.NDArray[np.bool_]:
    seen: npt.NDArray[np.bool_] = (rows["ids"][owner] == ids[:, None]).any(axis=1) & (ids != 0)
    return seen


def _save_contexts(rows: Rows, touched: Int64, window: Int64) -> list[tuple[int, Rows]]:
    entering = rows["window"][touched] != window
    saved = [
        (int(start), rows[touched[entering & (window == start)]].copy())
        for start in np.unique(window[entering])
    ]
    rows["window"][touched] = np.maximum(rows["window"][touched], window)
    return saved


def _count(
    rows: Rows, touched: Int64, starts: Int64, owner: Int64, part: EventColumns, half_life_ms: float
) -> None:
    """Totals, first and last times, and counts decayed to the newest event time seen."""
    newest = np.maximum.reduceat(part.time_ms, starts)
    oldest = np.minimum.reduceat(part.time_ms, starts)
    before = rows["decayed_at"][touched]
    now = np.maximum(before, newest)
    fresh = before == NEVER
    age = np.where(fresh, 0.0, now.astype(np.float64) - np.where(fresh, 0, before))
    decayed = rows["decayed"][touched] * np.exp2(-age / half_life_ms)[:, None]
    row_now = np.zeros(len(rows), np.int64)
    row_now[touched] = now
    weight = np.exp2(-(row_now[owner] - part.time_ms) / half_life_ms)
    place = np.searchsorted(touched, owner)
    np.add.at(decayed, (place, part.type), weight)
    rows["decayed"][touched] = decayed
    rows["decayed_at"][touched] = now
    rows["first_ms"][touched] = np.minimum(rows["first_ms"][touched], oldest)
    rows["last_ms"][touched] = np.maximum(rows["last_ms"][touched], newest)
    rows["total"][touched] += np.diff(np.append(starts, len(part)))


def _extend(rows: Rows, touched: Int64, starts: Int64, counts: Int64, part: EventColumns) -> None:
    """Merge new events into the sequences by event time; ties stand in order of arrival."""
    length = rows["items"].shape[1]
    place = np.repeat(np.arange(len(touched)), counts)
    order = np.lexsort((np.arange(len(part)), part.time_ms, place))  # by user, then time, then arrival
    from_end = np.repeat(starts + counts, counts) - 1 - np.arange(len(part))
    fits = from_end < length  # more than L new events: only the newest can stay
    order, user, column = order[fits], place[fits], 2 * length - 1 - from_end[fits]

    width = 2 * length
    times = np.full((len(touched), width), NEVER)
    times[:, :length] = rows["times"][touched]
    times[user, column] = part.time_ms[order]
    keep = np.argsort(times, axis=1, kind="stable")[:, length:]
    rows["times"][touched] = np.take_along_axis(times, keep, axis=1)
    for name, values in (("items", part.item), ("types", part.type), ("ids", part.event_id)):
        wide = np.zeros((len(touched), width), values.dtype)
        wide[:, :length] = rows[name][touched]
        wide[user, column] = values[order]
        rows[name][touched] = np.take_along_axis(wide, keep, axis=1)
    rows["count"][touched] = np.minimum(rows["count"][touched] + counts, length)
