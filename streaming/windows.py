"""Event-time windows on disk: what the model learns from.

A closed window is one folder, `windows/start=<time>/`, with one Parquet file per logical shard. A shard
without events in it writes an empty file, so a window is complete exactly when every shard has a file.
Files are written under a temporary name and renamed: whoever sees one sees all of it.

A file has one row per user active in the window: the events before it (the context, at most L), then those
in it, in time order. `target_from` counts the context: it is the first position that is new in this window.
The context is the user's state as it stood when the first event of the window was applied, so nothing
from the future leaks into it.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.hashing import UInt64
from streaming.rows import EVENT, EventColumns, Rows, end_to_end

SCHEMA = pa.schema(
    [
        ("user", pa.uint64()),
        ("items", pa.list_(pa.uint64())),
        ("times", pa.list_(pa.int64())),
        ("types", pa.list_(pa.uint8())),
        ("target_from", pa.int32()),
        ("trust", pa.float32()),
    ]
)

# one event in the buffer of an open window
BUFFERED = np.dtype([("user", np.uint64), ("item", np.uint64), ("time", np.int64), ("type", np.uint8)])


def pack_events(events: EventColumns) -> npt.NDArray[np.void]:
    """Events as they are buffered until their window closes."""
    packed = np.empty(len(events), BUFFERED)
    packed["user"], packed["item"] = events.user, events.item
    packed["time"], packed["type"] = events.time_ms, events.type
    return packed


@dataclass(frozen=True)
class Contexts:
    """What users had done before their first event in a window, as flat lists."""

    user: UInt64  # (U,)
    count: npt.NDArray[np.int32]  # (U,) events of each
    events: npt.NDArray[np.void]  # all of them, in sequence order, `EVENT`

    @classmethod
    def of(cls, rows: Rows, chosen: npt.NDArray[np.int64]) -> "Contexts":
        """What stands in the chosen rows."""
        length, count = rows["events"].shape[1], rows["count"][chosen]
        valid = np.arange(length) >= length - count[:, None]
        return cls(rows["user"][chosen], count, rows["events"][chosen][valid])

    def pack(self) -> bytes:
        """As they are buffered."""
        head = np.uint64(len(self.user)).tobytes()
        return b"".join((head, self.user.tobytes(), self.count.tobytes(), self.events.tobytes()))

    @classmethod
    def unpack(cls, packed: bytes) -> "Contexts":
        """The inverse of `pack`."""
        users = int(np.frombuffer(packed, np.uint64, 1)[0])
        counts_at, events_at = 8 + 8 * users, 8 + 12 * users
        return cls(
            np.frombuffer(packed, np.uint64, users, 8),
            np.frombuffer(packed, np.int32, users, counts_at),
            np.frombuffer(packed, EVENT, offset=events_at),
        )

    @classmethod
    def joined(cls, packed: Sequence[bytes]) -> "Contexts":
        """Several buffers as one, in order."""
        return end_to_end([cls.unpack(one) for one in packed] or [cls.none()])

    @classmethod
    def none(cls) -> "Contexts":
        """Contexts of nobody."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.int32), np.empty(0, EVENT))

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> "Contexts":
        """Those of some users, by mask or positions."""
        mask = np.zeros(len(self.user), bool)
        mask[chosen] = True
        return Contexts(self.user[mask], self.count[mask], self.events[np.repeat(mask, self.count)])


def window_of(time_ms: npt.NDArray[np.int64], length_ms: int) -> npt.NDArray[np.int64]:
    """Start of the window each time falls into, epoch ms (windows are aligned to the epoch)."""
    starts: npt.NDArray[np.int64] = np.floor_divide(time_ms, length_ms) * length_ms
    return starts


def assemble(start_ms: int, events: npt.NDArray[np.void], contexts: Contexts) -> pa.Table:
    """Put the buffer of one window and one shard together.

    Args:
        start_ms: start of the window.
        events: buffered events in order of arrival.
        contexts: saved contexts in order of saving; only a user's first counts.

    Returns:
        A table of `SCHEMA` sorted by user, without the trust column filled in (1.0).
    """
    users, place = np.unique(events["user"], return_inverse=True)
    known, first = np.unique(contexts.user, return_index=True)
    context = contexts.take(first[np.isin(known, users)])
    before = context.events["time"] < start_ms
    old = context.events[before]
    old_user = np.repeat(context.user, context.count)[before]

    # by user, then the context before what is new; a stable sort keeps the order of arrival
    part = np.concatenate([2 * np.searchsorted(users, old_user), 2 * place + 1])
    time = np.concatenate([old["time"], events["time"]])
    item = np.concatenate([old["item"], events["item"]])
    kind = np.concatenate([old["type"], events["type"]])
    order = np.lexsort((time, part))
    counts = np.bincount(part, minlength=2 * len(users)).reshape(-1, 2)  # (U, 2): context, new
    bounds = np.append(0, np.cumsum(counts.sum(axis=1))).astype(np.int32)
    return pa.table(
        {
            "user": pa.array(users, pa.uint64()),
            "items": pa.ListArray.from_arrays(bounds, pa.array(item[order], pa.uint64())),
            "times": pa.ListArray.from_arrays(bounds, pa.array(time[order], pa.int64())),
            "types": pa.ListArray.from_arrays(bounds, pa.array(kind[order], pa.uint8())),
            "target_from": pa.array(counts[:, 0], pa.int32()),
            "trust": pa.array(np.ones(len(users), np.float32)),
        },
        schema=SCHEMA,
    )


def with_trust(table: pa.Table, trust: npt.NDArray[np.float32]) -> pa.Table:
    """Fill in the trust of each user of a window table."""
    return table.set_column(SCHEMA.get_field_index("trust"), "trust", pa.array(trust, pa.float32()))


def folder_of(start_ms: int) -> str:
    """Name of a window's folder."""
    return f"start={datetime.fromtimestamp(start_ms / 1000, UTC):%Y-%m-%dT%H-%M-%SZ}"


def iso(start_ms: int) -> str:
    """A window's start as people read it."""
    return f"{datetime.fromtimestamp(start_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"


def start_of(folder: str) -> int:
    """Start of a window (epoch ms) from its folder's name; the inverse of `folder_of`."""
    moment = datetime.strptime(folder, "start=%Y-%m-%dT%H-%M-%SZ").replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def shard_file(windows_dir: Path, start_ms: int, shard: int) -> Path:
    """Where one shard's part of a window is."""
    return windows_dir / folder_of(start_ms) / f"shard={shard:04d}.parquet"


def write_shard(windows_dir: Path, start_ms: int, shard: int, table: pa.Table) -> Path:
    """Write one shard's part of a window; whole or not at all. Writing it again replaces it."""
    target = shard_file(windows_dir, start_ms, shard)
    target.parent.mkdir(parents=True, exist_ok=True)
    replace_file(target, table)
    return target


def replace_file(target: Path, table: pa.Table) -> None:
    """Write a Parquet file under a temporary name and rename it: whoever reads it sees the old or the new one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    pq.write_table(table, temporary, compression="zstd")
    temporary.replace(target)


@dataclass(frozen=True)
class WindowFiles:
    """A complete window on disk."""

    start_ms: int
    path: Path

    @property
    def name(self) -> str:
        """Start of the window in ISO form, for people."""
        return iso(self.start_ms)


def complete_windows(windows_dir: Path, num_shards: int) -> list[WindowFiles]:
    """List the windows for which every shard has written its file, oldest first."""
    if not windows_dir.is_dir():
        return []
    complete = [
        WindowFiles(start_of(folder.name), folder)
        for folder in windows_dir.glob("start=*")
        if sum(1 for _ in folder.glob("shard=*.parquet")) == num_shards
    ]
    return sorted(complete, key=lambda window: window.start_ms)


def read_window(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read all shards of a window, sorted by user, so that the order does not depend on the sharding."""
    files = sorted(path.glob("shard=*.parquet"))
    table = pa.concat_tables([pq.read_table(file, columns=columns, partitioning=None) for file in files])
    return table.sort_by("user") if "user" in table.column_names else table


def user_trust(rows: Rows, users: UInt64) -> npt.NDArray[np.float32]:
    """Trust of each of `users`, taken from their rows (same order)."""
    if not np.array_equal(rows["user"], users):
        raise AssertionError("rows and users do not match")
    trust: npt.NDArray[np.float32] = rows["trust"].copy()
    return trust
