"""What the store must do, written as plainly as Python allows: one event at a time, one dict."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from streaming.batch import Progress, ShardBatch
from streaming.config import StreamingSettings
from streaming.rows import BLANK_EVENT, FORGET, NEVER, NO_CATEGORY, EventColumns, Rows


@dataclass(frozen=True)
class Event:
    """A record of a partition's log."""

    user: int
    item: int = 1
    event_id: int = 0  # 0: none
    time_ms: int = 0
    type: int = 0
    value_micro: int = 0
    category: int = NO_CATEGORY
    offset: int = 0


@dataclass
class OracleUser:
    sequence: list[tuple[int, int, int, int]] = field(default_factory=list)  # time, item, type, id
    counted: list[Event] = field(default_factory=list)
    sessions: list[list[int]] = field(default_factory=list)  # event times of each
    dwell_ms: int = 0

    @property
    def last_ms(self) -> int:
        return max((event.time_ms for event in self.counted), default=NEVER)


class Oracle:
    """State, windows and counts after any number of events, in the order of their logs."""

    def __init__(self, settings: StreamingSettings) -> None:
        self.length, state = settings.sequence_length, settings.state
        self.gap_ms = state.session_gap_s * 1000
        self.ttl_ms = None if state.ttl_s is None else state.ttl_s * 1000
        self.users: dict[int, OracleUser] = {}
        self.erased_upto: dict[int, int] = {}
        self.counts = dict.fromkeys(("applied", "duplicates", "erasures", "erased"), 0)
        self.context: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self.windows: dict[int, list[tuple[int, int, int, int]]] = {}

    def apply(self, event: Event, window: int, clock_ms: int) -> None:
        if event.type == FORGET:
            self.forget(event)
            return
        if event.time_ms <= self.erased_upto.get(event.user, NEVER):
            self.counts["erased"] += 1
            return
        row = self.users.setdefault(event.user, OracleUser())
        if event.event_id and any(event.event_id == seen[3] for seen in row.sequence):
            self.counts["duplicates"] += 1
            return
        if self.ttl_ms is not None and row.counted and clock_ms - row.last_ms > self.ttl_ms:
            row = self.users[event.user] = OracleUser()
        before = [(t, i, k) for t, i, k, _ in row.sequence if t < window]
        self.context.setdefault((window, event.user), before)
        self.windows.setdefault(window, []).append((event.user, event.time_ms, event.item, event.type))
        if not row.counted or event.time_ms > row.last_ms + self.gap_ms:
            row.sessions.append([event.time_ms])
        else:
            row.dwell_ms += max(0, event.time_ms - row.last_ms)
            if event.time_ms >= row.sessions[-1][0]:
                row.sessions[-1].append(event.time_ms)
        row.sequence.append((event.time_ms, event.item, event.type, event.event_id))
        row.sequence = sorted(row.sequence, key=lambda e: e[0])[-self.length :]
        row.counted.append(event)
        self.counts["applied"] += 1

    def forget(self, event: Event) -> None:
        self.users.pop(event.user, None)
        self.erased_upto[event.user] = max(event.time_ms, self.erased_upto.get(event.user, NEVER))
        self.windows = {w: [e for e in events if e[0] != event.user] for w, events in self.windows.items()}
        self.context = {key: value for key, value in self.context.items() if key[1] != event.user}
        self.counts["erasures"] += 1

    def window(self, start: int) -> dict[int, tuple[list[tuple[int, int, int]], int]]:
        """{user: (sequence as (time, item, type), target_from)} of one window."""
        out = {}
        for user in {user for user, *_ in self.windows.get(start, [])}:
            context = self.context[start, user]
            new = sorted(((t, i, k) for u, t, i, k in self.windows[start] if u == user), key=lambda e: e[0])
            out[user] = ([*context, *new], len(context))
        return out


def check_row(row: Rows, expected: OracleUser, settings: StreamingSettings) -> None:
    """One row equals the oracle's."""
    start = settings.sequence_length - row["count"]
    columns = (row["events"][name][start:].tolist() for name in ("time", "item", "type", "id"))
    assert list(zip(*columns, strict=True)) == expected.sequence
    assert (row["events"][:start] == BLANK_EVENT).all()
    events = expected.counted
    assert row["total"] == len(events)
    assert row["last_ms"] == expected.last_ms
    assert row["first_ms"] == min(event.time_ms for event in events)
    types = range(len(settings.event_types))
    for half, half_life_s in enumerate(settings.state.half_lives_s):
        weights = [2.0 ** ((e.time_ms - expected.last_ms) / (half_life_s * 1000)) for e in events]
        counts = [sum(w for w, e in zip(weights, events, strict=True) if e.type == k) for k in types]
        np.testing.assert_allclose(row["decayed"][half], counts, rtol=1e-9, atol=1e-12)
    assert row["value_micro"].tolist() == [sum(e.value_micro for e in events if e.type == k) for k in types]
    categories = range(len(settings.state.categories))
    assert row["categories"].tolist() == [sum(e.category == c for e in events) for c in categories]
    assert row["sessions"] == len(expected.sessions)
    assert row["session_start_ms"] == expected.sessions[-1][0]
    assert row["session_events"] == len(expected.sessions[-1])
    assert row["dwell_ms"] == expected.dwell_ms


def columns_of(
    events: Sequence[Event], windows: Sequence[int], clocks: Sequence[int], partition: int = 0
) -> EventColumns:
    """Events as the columns that a store is given."""
    events = list(events)
    offsets = np.array([event.offset for event in events], np.int64)
    return EventColumns(
        user=np.array([event.user for event in events], np.uint64),
        item=np.array([event.item for event in events], np.uint64),
        event_id=np.array([event.event_id for event in events], np.uint64),
        time_ms=np.array([event.time_ms for event in events], np.int64),
        type=np.array([event.type for event in events], np.uint8),
        value_micro=np.array([event.value_micro for event in events], np.int64),
        category=np.array([event.category for event in events], np.uint8),
        partition=np.full(len(events), partition, np.int32),
        offset=offsets,
        ingested_ms=offsets * 10,
        window=np.array(windows, np.int64),
        clock_ms=np.array(clocks, np.int64),
    )


def make_batch(
    events: Sequence[Event],
    windows: Sequence[int],
    clocks: Sequence[int] | None = None,
    /,
    *,
    partitions: tuple[int, ...] = (0,),
    partition: int = 0,
    **overrides: object,
) -> ShardBatch:
    """A batch of one partition (0) whose records are `events`."""
    times = [event.time_ms for event in events]
    columns = columns_of(events, windows, times if clocks is None else clocks, partition)
    starts, reverse = np.unique(columns.window[::-1], return_index=True)
    step: dict[str, object] = {
        "partition": partition,
        "from_offset": int(columns.offset[0]) if len(columns) else 0,
        "upto_offset": int(columns.offset[-1]) if len(columns) else -1,
        "max_time_ms": int(columns.time_ms.max()) if len(columns) else NEVER,
        "idle": False,
        "windows": starts,
        "window_offsets": columns.offset[::-1][reverse],
        "dead_letters": np.empty(0, np.int64),
    }
    return ShardBatch((Progress(**(step | overrides)),), partitions, columns)  # type: ignore[arg-type]


def together(batches: Sequence[ShardBatch]) -> ShardBatch:
    """Batches of different partitions as one."""
    steps = tuple(step for batch in batches for step in batch.steps)
    return ShardBatch(steps, batches[0].partitions, EventColumns.joined([batch.events for batch in batches]))
