"""The vectorised update of state rows that the store is built on.

It works on whole batches, and its result is *exactly* that of applying the events one by one, whatever the batch
boundaries: after a failure the same records come again in other batches, and must lead to the same state.

What depends on the order of events follows two rules. The sequence stands in order of event time (ties in
order of arrival), and decayed counts are those of all events at the newest event time, so both are the same in
whatever order events arrive. Sessions and dwell time follow the arrivals: an event opens a session where it is
later than everything before it by more than the gap; one that comes late neither opens nor joins sessions.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from streaming.config import StreamingSettings
from streaming.hashing import UInt64
from streaming.rows import (
    BLANK_EVENT,
    EVENT,
    FORGET,
    NEVER,
    NO_CATEGORY,
    Bools,
    EventColumns,
    Int64,
    Rows,
    blank_rows,
)
from streaming.windows import Contexts

KEPT, DUPLICATE, ERASED, ERASURE = 0, 1, 2, 3  # what became of an event
_SHIFTED_AT_MOST = 8  # new events of a user up to which shifting beats sorting


@dataclass(frozen=True)
class Rules:
    """What the update needs of the settings, in milliseconds."""

    half_lives_ms: npt.NDArray[np.float64]
    session_gap_ms: int
    ttl_ms: int | None

    @classmethod
    def of(cls, settings: StreamingSettings) -> "Rules":
        """Take the rules from the settings."""
        state = settings.state
        return cls(
            np.array(state.half_lives_s) * 1000,
            int(state.session_gap_s * 1000),
            None if state.ttl_s is None else int(state.ttl_s * 1000),
        )


@dataclass(frozen=True)
class Touched:
    """What one update did, beside changing the rows."""

    outcome: npt.NDArray[np.uint8]  # (N,) KEPT, DUPLICATE, ERASED (before its user's erasure), ERASURE
    contexts: list[tuple[int, Contexts]]  # (window, what users had done before their first event in it)
    erased: dict[int, int]  # row: position of the newest erasure of its user
    expired: int  # rows that started anew after their time to live


def update_rows(
    rows: Rows,
    owner: Int64,
    events: EventColumns,
    rules: Rules,
    erased_upto_ms: Int64 | None = None,
) -> Touched:
    """Apply events to rows in place. A row whose user was erased and not seen again has `total == 0`.

    Args:
        rows: (U,) state rows.
        owner: (N,) the row of each event.
        events: N events, in arrival order within a user.
        rules: half-lives, session gap, time to live.
        erased_upto_ms: (U,) events up to this time are of an erased past; changed in place.
    """
    cut = np.full(len(rows), NEVER) if erased_upto_ms is None else erased_upto_ms
    touched = Touched(np.zeros(len(events), np.uint8), [], {}, 0)
    expired = 0
    passes, careful = _passes(rows, owner, events, rules, cut)
    touched.outcome[passes < 0] = DUPLICATE
    for number in range(int(passes.max(initial=-1)) + 1):
        chosen = np.flatnonzero(passes == number) if passes.any() else np.arange(len(events))
        if careful.any():
            chosen, again = _settle(rows, owner, events, chosen, careful, rules, cut, touched)
            expired += again
        if not len(chosen):
            continue
        # sort by row; a stable sort keeps arrival order within a user
        chosen = chosen[np.argsort(owner[chosen], kind="stable")]
        _apply(rows, _Part.of_sorted(owner[chosen], events.take(chosen)), rules, touched)
    return Touched(touched.outcome, touched.contexts, touched.erased, expired)


@dataclass(frozen=True)
class _Part:
    """Events sorted by row: those of row `who[i]` are `events[starts[i]:starts[i] + counts[i]]`."""

    who: Int64
    starts: Int64
    counts: Int64
    events: EventColumns

    @classmethod
    def of_sorted(cls, owner: Int64, events: EventColumns) -> "_Part":
        """Events that are sorted by their rows."""
        starts = np.flatnonzero(np.append(True, owner[1:] != owner[:-1]))
        return cls(owner[starts], starts, np.diff(np.append(starts, len(owner))), events)

    @property
    def place(self) -> Int64:
        """Position in `who` of each event."""
        return np.repeat(np.arange(len(self.who)), self.counts)

    def of(self, rows: Rows) -> "slice | Int64":
        """Index that selects these rows; a slice where it is all of them, which saves copying."""
        return slice(None) if len(self.who) == len(rows) else self.who


def _apply(rows: Rows, part: _Part, rules: Rules, touched: Touched) -> None:
    events, chosen = part.events, part.of(rows)
    touched.contexts.extend(_save_contexts(rows, part.who, events.window[part.starts]))
    before, in_order = _newest_before(rows["last_ms"][chosen], part)
    _count(rows, chosen, part, rules)
    _follow_sessions(rows, chosen, part, before, rules.session_gap_ms)
    _extend(rows, part, in_order)
    last = part.starts + part.counts - 1
    rows["partition"][chosen] = events.partition[last]
    rows["offset"][chosen] = events.offset[last]
    rows["ingested_ms"][chosen] = events.ingested_ms[last]


def _passes(rows: Rows, owner: Int64, events: EventColumns, rules: Rules, cut: Int64) -> tuple[Int64, Bools]:
    """Number each event with the pass in which it may be applied (-1: a duplicate), and say which users need care.

    Events of one user may share a pass only where doing them together equals doing them in turn: they
    count into one window, no doubt is left about duplicates, and none erases or outlives the row. The k-th
    window change of a user opens its k-th pass; a user that needs care gets a pass per event.
    """
    order = np.argsort(owner, kind="stable")
    sorted_events = events.take(order)
    who, window = owner[order], sorted_events.window
    same_user = np.zeros(len(order), bool)
    same_user[1:] = who[1:] == who[:-1]

    careful = np.zeros(len(rows), bool)
    careful[who[sorted_events.type == FORGET]] = True
    careful[who[sorted_events.time_ms <= cut[who]]] = True
    if rules.ttl_ms is not None:
        part = _Part.of_sorted(who, sorted_events)
        before, _ = _newest_before(rows["last_ms"][part.who], part)
        late = (before != NEVER) & (
            sorted_events.clock_ms - np.where(before == NEVER, 0, before) > rules.ttl_ms
        )
        careful[who[late]] = True
    certain = _duplicates(rows, who, sorted_events, careful)

    step = np.zeros(len(order), np.int64)
    step[1:] = same_user[1:] & (window[1:] != window[:-1])
    step[careful[who] & same_user] = 1
    passes = np.zeros(len(order), np.int64)
    if step.any():
        total = np.cumsum(step)
        first = np.flatnonzero(~same_user)
        passes[order] = total - np.repeat(total[first], np.diff(np.append(first, len(order))))
    passes[order[certain]] = -1
    return passes, careful


def _duplicates(rows: Rows, who: Int64, events: EventColumns, careful: Bools) -> Bools:
    """Which events (N,), sorted by row, are duplicates for certain; users with a doubtful one are marked careful.

    An event that is the r-th newest of L leaves the row only after L - r others have come. So a repeat is certain
    where fewer than that came between. For a repeat within the batch the first of the two must have been the newest
    when it came, which is so where a user's events came in order.
    """
    length, ids = rows["events"].shape[1], events.event_id
    starts = np.flatnonzero(np.append(True, who[1:] != who[:-1]))
    nth = np.arange(len(who)) - np.repeat(starts, np.diff(np.append(starts, len(who))))
    suspect = np.flatnonzero(_seen_before(rows, who, ids))
    certain = np.zeros(len(who), bool)
    if len(suspect):
        newest = np.argmax(rows["events"]["id"][who[suspect]][:, ::-1] == ids[suspect][:, None], axis=1)
        certain[suspect] = newest + nth[suspect] < length
    pairs = np.lexsort((np.arange(len(who)), ids, who))
    left, right = pairs[:-1], pairs[1:]
    again = (who[left] == who[right]) & (ids[left] == ids[right]) & (ids[left] != 0)
    repeats = right[again]
    if len(repeats):
        new_name = np.append(True, ~again)
        first = pairs[np.maximum.accumulate(np.where(new_name, np.arange(len(pairs)), 0))][1:][again]
        users = np.flatnonzero(np.isin(who, who[repeats]))
        part = _Part.of_sorted(who[users], events.take(users))
        in_order = np.zeros(len(rows), bool)
        in_order[part.who] = _newest_before(rows["last_ms"][part.who], part)[1]
        entered = ~np.isin(first, suspect)  # the first of the two is no repeat itself
        certain[repeats] |= entered & in_order[who[repeats]] & (nth[repeats] - nth[first] < length)
    doubtful = np.zeros(len(who), bool)
    doubtful[suspect] = doubtful[repeats] = True
    careful[who[doubtful & ~certain]] = True
    return certain & ~careful[who]


def _settle(
    rows: Rows,
    owner: Int64,
    events: EventColumns,
    chosen: Int64,
    careful: Bools,
    rules: Rules,
    cut: Int64,
    touched: Touched,
) -> tuple[Int64, int]:
    """Decide on the events of users that need care, of which a pass has one each; returns those to apply."""
    special = chosen[careful[owner[chosen]]]
    who, time_ms = owner[special], events.time_ms[special]
    erasure = events.type[special] == FORGET
    erased = ~erasure & (time_ms <= cut[who])
    duplicate = ~erasure & ~erased & _seen_before(rows, who, events.event_id[special])
    touched.outcome[special[erasure]] = ERASURE
    touched.outcome[special[erased]] = ERASED
    touched.outcome[special[duplicate]] = DUPLICATE
    if erasure.any():
        gone = who[erasure]
        rows[gone] = blank_rows(rows["user"][gone], rows.dtype)
        cut[gone] = np.maximum(cut[gone], time_ms[erasure])
        touched.erased.update(zip(gone.tolist(), special[erasure].tolist(), strict=True))
        users = rows["user"][gone]
        touched.contexts[:] = [(w, saved.take(~np.isin(saved.user, users))) for w, saved in touched.contexts]
    fine = ~(erasure | erased | duplicate)
    expired = 0
    if rules.ttl_ms is not None:
        last = rows["last_ms"][who]
        dead = fine & (last != NEVER)
        dead &= events.clock_ms[special] - np.where(last == NEVER, 0, last) > rules.ttl_ms
        rows[who[dead]] = blank_rows(rows["user"][who[dead]], rows.dtype)
        expired = int(dead.sum())
    return chosen[~careful[owner[chosen]] | np.isin(chosen, special[fine])], expired


def _seen_before(rows: Rows, owner: Int64, ids: UInt64) -> Bools:
    seen: Bools = (rows["events"]["id"][owner] == ids[:, None]).any(axis=1) & (ids != 0)
    return seen


def _newest_before(last_ms: Int64, part: _Part) -> tuple[Int64, Bools]:
    """Newest event time of a user before each event (N,), and for which users all came in order (U,)."""
    times, starts = part.events.time_ms, part.starts
    before = np.empty_like(times)
    before[1:] = times[:-1]
    before[starts] = last_ms
    disorder = np.add.reduceat(times < before, starts) > 0
    if not disorder.any():
        return before, ~disorder
    # running maximum within each user: ranks of times, lifted so that each user's stand above the last one's
    values, rank = np.unique(np.concatenate([before, times]), return_inverse=True)
    lift = part.place * len(values)
    shifted = np.maximum.accumulate(np.maximum(rank[: len(times)], rank[len(times) :]) + lift)
    running: Int64 = values[shifted - lift]  # newest up to and with each event
    before[1:] = running[:-1]
    before[starts] = last_ms
    return before, ~disorder


def _save_contexts(rows: Rows, who: Int64, window: Int64) -> list[tuple[int, Contexts]]:
    entering = rows["window"][who] != window
    if not entering.any():
        return []
    saved = [
        (int(start), Contexts.of(rows, who[entering & (window == start)]))
        for start in np.unique(window[entering])
    ]
    rows["window"][who] = np.maximum(rows["window"][who], window)
    return saved


def _count(rows: Rows, chosen: "slice | Int64", part: _Part, rules: Rules) -> None:
    """Totals, first and last times, and counts decayed to the newest event time seen."""
    events, place, users = part.events, part.place, len(part.who)
    newest = np.maximum.reduceat(events.time_ms, part.starts)
    before = rows["last_ms"][chosen]
    now = np.maximum(before, newest)
    age = np.where(before == NEVER, 0, now - np.where(before == NEVER, 0, before)).astype(np.float64)
    behind = (now[place] - events.time_ms).astype(np.float64)
    decayed = rows["decayed"][chosen]  # (U, H, T)
    types = decayed.shape[2]
    cell = place * types + events.type
    for half, half_life_ms in enumerate(rules.half_lives_ms):
        weight = np.exp2(-behind / half_life_ms)
        added = np.bincount(cell, weight, minlength=users * types).reshape(users, types)
        rows["decayed"][chosen, half] = decayed[:, half] * np.exp2(-age / half_life_ms)[:, None] + added
    rows["first_ms"][chosen] = np.minimum(
        rows["first_ms"][chosen], np.minimum.reduceat(events.time_ms, part.starts)
    )
    rows["last_ms"][chosen] = now
    rows["total"][chosen] += part.counts
    with_value = np.flatnonzero(events.value_micro)
    if len(with_value):
        where = part.who[place[with_value]], events.type[with_value]
        np.add.at(rows["value_micro"], where, events.value_micro[with_value])
    in_category = np.flatnonzero(events.category != NO_CATEGORY)
    if len(in_category):
        np.add.at(rows["categories"], (part.who[place[in_category]], events.category[in_category]), 1)


def _follow_sessions(
    rows: Rows, chosen: "slice | Int64", part: _Part, before: Int64, session_gap_ms: int
) -> None:
    times, starts, place = part.events.time_ms, part.starts, part.place
    known = before != NEVER
    pause = np.where(known, times - np.where(known, before, 0), 0)
    opens = ~known | (pause > session_gap_ms)
    rows["dwell_ms"][chosen] += np.add.reduceat(np.where(opens, 0, np.maximum(pause, 0)), starts)
    opened = np.add.reduceat(opens.astype(np.int32), starts)
    rows["sessions"][chosen] += opened
    position = np.arange(len(times))
    newest_open = np.maximum.reduceat(np.where(opens, position, -1), starts)
    start_ms = np.where(opened > 0, times[newest_open], rows["session_start_ms"][chosen])
    joins = (position >= newest_open[place]) & (times >= start_ms[place])
    joined = np.add.reduceat(joins.astype(np.int32), starts)
    rows["session_events"][chosen] = np.where(opened > 0, joined, rows["session_events"][chosen] + joined)
    rows["session_start_ms"][chosen] = start_ms


def _extend(rows: Rows, part: _Part, in_order: Bools) -> None:
    """Merge new events into the sequences by event time; ties stand in order of arrival."""
    length = rows["events"].shape[1]
    new = np.empty(len(part.events), EVENT)
    new["item"], new["time"] = part.events.item, part.events.time_ms
    new["id"], new["type"] = part.events.event_id, part.events.type
    shifts = in_order & (part.counts <= min(length, _SHIFTED_AT_MOST))
    width = length * EVENT.itemsize
    places = rows.view(np.uint8).reshape(len(rows), rows.dtype.itemsize)[:, :width]  # shifted as bytes, fast
    for count in np.unique(part.counts[shifts]).tolist():
        users = shifts & (part.counts == count)
        chosen: slice | Int64 = slice(None) if users.all() and len(users) == len(rows) else part.who[users]
        by = count * EVENT.itemsize
        places[chosen, : width - by] = places[chosen, by:]
        rows["events"][chosen, length - count :] = new[part.starts[users][:, None] + np.arange(count)]
    if not shifts.all():
        _merge(rows, part, ~shifts, new)
    rows["count"][part.who] = np.minimum(rows["count"][part.who] + part.counts, length)


def _merge(rows: Rows, part: _Part, users: Bools, new: npt.NDArray[np.void]) -> None:
    """Sort old and new events of the chosen users together and keep the newest L."""
    length = rows["events"].shape[1]
    touched, counts = part.who[users], part.counts[users]
    picked = np.flatnonzero(np.repeat(users, part.counts))
    place = np.repeat(np.arange(len(touched)), counts)
    order = picked[np.lexsort((picked, new["time"][picked], place))]  # by user, then time, then arrival
    from_end = np.repeat(np.cumsum(counts), counts) - 1 - np.arange(len(order))
    fits = from_end < length  # more than L new events: only the newest can stay
    both = np.full((len(touched), 2 * length), BLANK_EVENT, EVENT)
    both[:, :length] = rows["events"][touched]
    both[place[fits], 2 * length - 1 - from_end[fits]] = new[order[fits]]
    keep = np.argsort(both["time"], axis=1, kind="stable")[:, length:]
    rows["events"][touched] = np.take_along_axis(both, keep, axis=1)
