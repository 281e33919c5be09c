"""What must have come of a log, computed one record at a time in plain Python, without a line of the product's rules.

Rows and window contents are kept by `tests.streaming.oracle`; what is added here is the reading of a record and the
window that it counts into. The latter is a function of its partition's log alone: an event counts into the window
of its own time or, where that is further behind the newest time before it than the lateness, into the window of the
newest time less the lateness.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from xxhash import xxh3_64_intdigest

from streaming.config import StreamingSettings
from tests.faults.log import Logged
from tests.streaming.oracle import Event, Oracle

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

    oracle: Oracle
    last: dict[int, LastApplied] = field(default_factory=dict)
    dead: set[tuple[int, int]] = field(default_factory=set)  # (partition, offset)
    late: int = 0
    named: set[int] = field(default_factory=set)  # windows that any valid record counts into
    newest_ms: dict[int, int] = field(default_factory=dict)  # by partition
    records: int = 0

    def totals(self) -> dict[str, int]:
        """Exact counts, by the names of the product's."""
        return self.oracle.counts | {"late": self.late, "dead_letters": len(self.dead)}

    def closed(self, length_ms: int, lateness_ms: int) -> dict[int, dict[int, WindowRow]]:
        """Contents by user of every window that all partitions have left behind, by its start."""
        watermark = min(self.newest_ms.values()) - lateness_ms
        return {start: self.window(start) for start in sorted(self.named) if start + length_ms <= watermark}

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


def truth_of(log: Mapping[int, Sequence[Logged]], settings: StreamingSettings) -> Truth:
    """Go through the log of a topic."""
    truth = Truth(Oracle(settings))
    for partition, records in log.items():
        newest = _NONE_YET
        for record in records:
            truth.records += 1
            event = read(record, settings)
            if event is None:
                truth.dead.add((partition, record.offset))
                continue
            newest = _apply(truth, event, partition, record, newest, settings)
        truth.newest_ms[partition] = newest
    return truth


def _apply(
    truth: Truth, event: Event, partition: int, record: Logged, newest: int, settings: StreamingSettings
) -> int:
    """Returns the partition's newest time with this event."""
    length_ms, lateness_ms = (int(s * 1000) for s in (settings.windows.length_s, settings.windows.lateness_s))
    clock = event.time_ms if newest == _NONE_YET else max(event.time_ms, newest - lateness_ms)
    window = clock // length_ms * length_ms
    truth.named.add(window)
    before = truth.oracle.counts["applied"]
    truth.oracle.apply(event, window, clock)
    if event.type == _FORGET:
        truth.last.pop(event.user, None)
    elif truth.oracle.counts["applied"] > before:
        truth.late += window != event.time_ms // length_ms * length_ms
        earlier = truth.last.get(event.user)
        newest_window = max(window, earlier.window) if earlier else window
        truth.last[event.user] = LastApplied(partition, record.offset, record.timestamp_ms, newest_window)
    return max(newest, event.time_ms)


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
