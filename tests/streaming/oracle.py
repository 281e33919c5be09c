"""What the store must do, written as plainly as Python allows: one event at a time, one dict."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from streaming.rows import NEVER, EventColumns, Rows
from streaming.state import ShardBatch

# (user, item, event_id, time_ms, type, offset): window and record time follow from the offset's position
Event = tuple[int, int, int, int, int, int]


@dataclass
class OracleUser:
    sequence: list[tuple[int, int, int, int]] = field(default_factory=list)  # time, item, type, id
    times: list[tuple[int, int]] = field(default_factory=list)  # every counted (time, type)


class Oracle:
    def __init__(self, length: int, window_ms: int) -> None:
        self.length, self.window_ms = length, window_ms
        self.users: dict[int, OracleUser] = {}
        self.applied = self.duplicates = 0
        self.context: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
        self.windows: dict[int, list[tuple[int, int, int, int]]] = {}

    def apply(self, event: Event, window: int) -> None:
        user, item, event_id, time_ms, kind, _ = event
        row = self.users.setdefault(user, OracleUser())
        if event_id and any(event_id == seen[3] for seen in row.sequence):
            self.duplicates += 1
            return
        before = [(t, i, k) for t, i, k, _ in row.sequence if t < window]
        self.context.setdefault((window, user), before)
        self.windows.setdefault(window, []).append((user, time_ms, item, kind))
        row.sequence = sorted([*row.sequence, (time_ms, item, kind, event_id)], key=lambda e: e[0])
        row.sequence = row.sequence[-self.length :]
        row.times.append((time_ms, kind))
        self.applied += 1

    def window(self, start: int) -> dict[int, tuple[list[tuple[int, int, int]], int]]:
        """{user: (sequence as (time, item, type), target_from)} of one window."""
        out = {}
        for user in {user for user, *_ in self.windows.get(start, [])}:
            context = self.context[start, user]
            new = sorted(((t, i, k) for u, t, i, k in self.windows[start] if u == user), key=lambda e: e[0])
            out[user] = ([*context, *new], len(context))
        return out


def decayed(user: OracleUser, half_life_ms: float, num_types: int) -> list[float]:
    now = max(time for time, _ in user.times)
    return [
        sum(2.0 ** ((t - now) / half_life_ms) for t, k in user.times if k == kind)
        for kind in range(num_types)
    ]


def check_rows(oracle: Oracle, rows: Rows, half_life_ms: float) -> None:
    """Every row equals the oracle's."""
    assert {int(user) for user in rows["user"]} == {user for user, row in oracle.users.items() if row.times}
    for row in rows:
        expected = oracle.users[int(row["user"])]
        start = oracle.length - row["count"]
        columns = (row["times"][start:], row["items"][start:], row["types"][start:], row["ids"][start:])
        assert list(zip(*(column.tolist() for column in columns), strict=True)) == expected.sequence
        assert (row["times"][:start] == NEVER).all()
        assert (row["items"][:start] == 0).all()
        assert row["total"] == len(expected.times)
        assert row["last_ms"] == max(time for time, _ in expected.times)
        assert row["first_ms"] == min(time for time, _ in expected.times)
        counts = decayed(expected, half_life_ms, len(row["decayed"]))
        np.testing.assert_allclose(row["decayed"], counts, rtol=1e-9, atol=1e-12)


def make_batch(events: Iterable[Event], windows: Iterable[int], **overrides: object) -> ShardBatch:
    """A batch of partition 0 whose records are `events`."""
    events, windows = list(events), list(windows)
    table = np.array(events, np.int64).reshape(-1, 6)
    offsets = table[:, 5]
    columns = EventColumns(
        user=table[:, 0].astype(np.uint64),
        item=table[:, 1].astype(np.uint64),
        event_id=table[:, 2].astype(np.uint64),
        time_ms=table[:, 3],
        type=table[:, 4].astype(np.uint8),
        offset=offsets,
        ingested_ms=offsets * 10,
        window=np.array(windows, np.int64),
    )
    starts, reverse = np.unique(columns.window[::-1], return_index=True)
    batch = {
        "partition": 0,
        "from_offset": int(offsets[0]) if len(offsets) else 0,
        "upto_offset": int(offsets[-1]) if len(offsets) else -1,
        "max_time_ms": int(table[:, 3].max()) if len(offsets) else NEVER,
        "idle": False,
        "num_partitions": 1,
        "windows": starts,
        "window_offsets": offsets[::-1][reverse],
        "dead_letters": np.empty(0, np.int64),
        "events": columns,
    }
    return ShardBatch(**(batch | overrides))
