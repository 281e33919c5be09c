"""User state rows as columns: the layout in memory and on disk, and events as columns.

A row is a fixed-size numpy record, so that a batch of users is one array. On disk a row begins with its oldest
event: the places that a user has not filled yet are left out, which for most users is most of them, and makes
the store a third as large and as costly to change.
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streaming.config import StreamingSettings
from streaming.hashing import UInt64

Int64 = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Rows = npt.NDArray[np.void]

Columns = TypeVar("Columns")  # a dataclass of arrays

NEVER = np.iinfo(np.int64).min  # "no time yet"
FORGET = 255  # type code of an erasure
NO_CATEGORY = 255

# one kept event; `id` is the event-id hash, for de-duplication
EVENT = np.dtype([("item", np.uint64), ("time", np.int64), ("id", np.uint64), ("type", np.uint8)])
BLANK_EVENT = np.array((0, NEVER, 0, 0), EVENT)


def row_dtype(settings: StreamingSettings) -> np.dtype[np.void]:
    """Layout of one user's state.

    L newest events are kept (`sequence_length`), of T types (`event_types`), with H half-lives and C categories
    (`state`). The sequence is right-aligned: the newest event stands at position `L - 1`, valid ones are the
    last `count`. Times are epoch milliseconds.
    """
    length, types = settings.sequence_length, len(settings.event_types)
    halves, categories = len(settings.state.half_lives_s), len(settings.state.categories)
    return np.dtype(
        [
            ("events", EVENT, (length,)),  # must stand first: see `pack_rows`
            ("user", np.uint64),
            ("count", np.int32),
            ("decayed", np.float64, (halves, types)),  # exponentially decayed event counts, as of `last_ms`
            ("value_micro", np.int64, (types,)),  # sum of values, in millionths: integers add up in any order
            ("categories", np.int32, (categories,)),  # events per category
            ("first_ms", np.int64),
            ("last_ms", np.int64),
            ("total", np.int64),
            ("sessions", np.int32),
            ("session_start_ms", np.int64),
            ("session_events", np.int32),
            ("dwell_ms", np.int64),  # time between consecutive events of a session, summed
            ("trust", np.float32),
            ("partition", np.int32),  # code of where the newest applied event of this user came from
            ("offset", np.int64),
            ("ingested_ms", np.int64),  # its Kafka record timestamp
            ("window", np.int64),  # newest window whose context was saved
        ]
    )


def blank_rows(users: UInt64, dtype: np.dtype[np.void]) -> Rows:
    """Rows of users never seen before."""
    rows = np.zeros(len(users), dtype)
    rows["user"] = users
    rows["events"] = BLANK_EVENT
    rows["last_ms"] = NEVER
    rows["first_ms"] = np.iinfo(np.int64).max
    rows["session_start_ms"] = NEVER
    rows["trust"] = 1.0
    rows["offset"] = -1
    rows["partition"] = -1
    rows["window"] = NEVER
    return rows


def pack_rows(rows: Rows) -> list[bytes]:
    """Rows as they are stored: without the places before the oldest event."""
    data, size = rows.tobytes(), rows.dtype.itemsize
    length = rows["events"].shape[1]
    starts = np.arange(0, len(data), size) + (length - rows["count"]) * EVENT.itemsize
    return [
        data[start:end] for start, end in zip(starts.tolist(), range(size, len(data) + 1, size), strict=True)
    ]


def unpack_rows(stored: Sequence[bytes], dtype: np.dtype[np.void]) -> Rows:
    """The inverse of `pack_rows`; the array is writable."""
    fills = _fills(dtype)
    parts = [part for value in stored for part in (fills[len(value)], value)]
    return np.frombuffer(bytearray().join(parts), dtype)


@functools.lru_cache
def _fills(dtype: np.dtype[np.void]) -> dict[int, bytes]:
    """What stands before a stored row, by its length."""
    length = dtype["events"].shape[0]
    blank = np.full(length, BLANK_EVENT, EVENT).tobytes()
    sizes = range(0, len(blank) + 1, EVENT.itemsize)
    return {dtype.itemsize - size: blank[:size] for size in sizes}


def end_to_end(parts: Sequence[Columns]) -> Columns:
    """Several instances of a dataclass of arrays as one, each array concatenated; at least one is expected."""
    columns = zip(*(vars(part).values() for part in parts), strict=True)
    return type(parts[0])(*map(np.concatenate, columns))


@dataclass(frozen=True)
class EventColumns:
    """Events of one or more logical shards as columns of length N, in arrival order within a user."""

    user: UInt64
    item: UInt64
    event_id: UInt64  # 0: none
    time_ms: Int64
    type: npt.NDArray[np.uint8]  # FORGET: an erasure
    value_micro: Int64
    category: npt.NDArray[np.uint8]  # NO_CATEGORY: none
    partition: npt.NDArray[np.int32]  # code of the partition it came from
    offset: Int64
    ingested_ms: Int64
    window: Int64  # start of the window it counts into, epoch ms
    clock_ms: Int64  # its own time or, where the partition's watermark had passed that, the watermark

    def __len__(self) -> int:
        return len(self.user)

    def take(self, selection: Bools | Int64 | slice) -> "EventColumns":
        """Select events by mask, positions or slice."""
        return EventColumns(*(column[selection] for column in vars(self).values()))

    @classmethod
    def joined(cls, parts: Sequence["EventColumns"]) -> "EventColumns":
        """Several as one, in order."""
        return parts[0] if len(parts) == 1 else end_to_end(parts)

    @classmethod
    def none(cls) -> "EventColumns":
        """No events."""
        empty = np.empty(0, np.int64)
        small, name = empty.astype(np.uint8), empty.astype(np.uint64)
        code = empty.astype(np.int32)
        return cls(name, name, name, empty, small, empty, small, code, empty, empty, empty, empty)
