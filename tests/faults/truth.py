"""What must have come of a log, computed one record at a time in plain Python, without a line of the product's rules.

Rows and window contents are kept by `tests.streaming.oracle`; what is added here is the reading of a record and the
window that it counts into. The latter is a function of its partition's log alone: an event counts into the window
of its own time or, where that is further behind the newest time before it than the lateness, into the window of the
newest time less the lateness.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_64_intdigest

from streaming.config import StreamingSettings
from tests.faults.log import Logged
from tests.streaming.oracle import Event, Oracle, OracleUser

_FORGET, _NO_CATEGORY, _NONE_YET = 255, 255, -(2**63)

WindowRow = tuple[list[tuple[int, int, int]], int]
"""A user's sequence as (time, item, type), and `target_from`."""


@dataclass(frozen=True)
class LastApplied:
    """Where the newest applied event of a user stood."""

    partition: int
    offset: int
    ingested_ms: int
    window: int  # newest window that any event of the row counted into


@dataclass
class Truth:
    """State, windows and counts that a log leads to."""

    users: dict[int, OracleUser] = field(default_factory=dict)
    last: dict[int, LastApplied] = field(default_factory=dict)  # by user
    windows: dict[int, dict[int, WindowRow]] = field(default_factory=dict)  # start: user: row
    totals: Counter[str] = field(default_factory=Counter)  # by the names of the product's counts
    dead: set[tuple[int, int]] = field(default_factory=set)  # (partition, offset)
    newest_ms: list[int] = field(default_factory=list)  # event time of each partition
    records: int = 0

    def closed(self, length_ms: int, lateness_ms: int) -> dict[int, dict[int, WindowRow]]:
        """The windows that all partitions have left behind."""
        watermark = min(self.newest_ms) - lateness_ms
        return {start: rows for start, rows in self.windows.items() if start + length_ms <= watermark}


def truth_of(log: Mapping[int, Sequence[Logged]], settings: StreamingSettings) -> Truth:
    """Go through the log of a topic, partition by partition: a user's records all stand in one."""
    truth = Truth()
    for number, records in log.items():
        partition = _Partition(number, settings)
        for record in records:
            partition.take(record)
        assert not truth.users.keys() & partition.oracle.users.keys()
        truth.records += len(records)
        truth.users |= partition.oracle.users
        truth.last |= partition.last
        truth.newest_ms.append(partition.newest_ms)
        truth.dead |= {(number, offset) for offset in partition.dead}
        counts = {"late": partition.late, "dead_letters": len(partition.dead)}
        truth.totals.update(partition.oracle.counts | counts)
        for start in partition.named:
            truth.windows.setdefault(start, {}).update(partition.window(start))
    return truth


class _Partition:
    """Goes through the log of one partition."""

    def __init__(self, number: int, settings: StreamingSettings) -> None:
        self._number, self._settings = number, settings
        self._length_ms = int(settings.windows.length_s * 1000)
        self._lateness_ms = int(settings.windows.lateness_s * 1000)
        self.oracle = Oracle(settings)
        self.last: dict[int, LastApplied] = {}
        self.dead: list[int] = []
        self.late = 0
        self.named: set[int] = set()  # windows that any valid record counts into
        self.newest_ms = _NONE_YET

    def take(self, record: Logged) -> None:
        event = read(record, self._settings)
        if event is None:
            self.dead.append(record.offset)
            return
        clock = event.time_ms
        if self.newest_ms != _NONE_YET:
            clock = max(clock, self.newest_ms - self._lateness_ms)
        window = clock // self._length_ms * self._length_ms
        self.named.add(window)
        before = self.oracle.counts["applied"]
        self.oracle.apply(event, window, clock)
        if event.type == _FORGET:
            self.last.pop(event.user, None)
        elif self.oracle.counts["applied"] > before:
            self.late += window != event.time_ms // self._length_ms * self._length_ms
            earlier = self.last.get(event.user)
            newest = max(window, earlier.window) if earlier else window
            self.last[event.user] = LastApplied(self._number, record.offset, record.timestamp_ms, newest)
        self.newest_ms = max(self.newest_ms, event.time_ms)

    def window(self, start: int) -> dict[int, WindowRow]:
        """Contents of a window, by user."""
        new: dict[int, list[tuple[int, int, int]]] = {}
        for user, time_ms, item, kind in self.oracle.windows.get(start, []):
            new.setdefault(user, []).append((time_ms, item, kind))
        rows: dict[int, WindowRow] = {}
        for user, events in new.items():
            context = self.oracle.context[start, user]
            rows[user] = ([*context, *sorted(events, key=lambda event: event[0])], len(context))
        return rows


def read(record: Logged, settings: StreamingSettings) -> Event | None:
    """The event in a record of this run's stream; None where it is no valid one."""
    if record.value is None:
        user = (record.key or b"").decode()
        return Event(name(user), 0, time_ms=record.timestamp_ms, type=_FORGET, offset=record.offset)
    try:
        fields = json.loads(record.value)
    except ValueError:
        return None
    if not isinstance(fields, dict) or not _complete(fields, settings):
        return None
    forget = fields["type"] == "$forget"
    category = fields.get("context", {}).get("category")
    known = settings.state.categories
    return Event(
        user=name(fields["user_id"]),
        item=0 if forget else name(fields["item_id"]),
        event_id=name(fields["event_id"]),
        time_ms=fields["timestamp"],
        type=_FORGET if forget else settings.event_types.index(fields["type"]),
        value_micro=round(fields.get("value", 0) * 1_000_000),
        category=known.index(category) if category in known else _NO_CATEGORY,
        offset=record.offset,
    )


def _complete(fields: dict[str, Any], settings: StreamingSettings) -> bool:
    texts = ["user_id", "event_id", "type", *([] if fields.get("type") == "$forget" else ["item_id"])]
    return (
        all(isinstance(fields.get(text), str) for text in texts)
        and isinstance(fields.get("timestamp"), int)
        and fields["type"] in (*settings.event_types, "$forget")
    )


def name(text: str) -> int:
    """The 64-bit name that users, items and events go by."""
    return xxh3_64_intdigest(text.encode()) or 1
