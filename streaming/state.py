"""The store of one logical shard: user rows, open windows and applied offsets in one LMDB environment.

LMDB gives one writer, many reading processes through the page cache, and transactions. The order in which
things become durable is the exactly-once argument:

1. The rows, the buffered window events and `applied[partition] = upto` change in **one** transaction.
   Either all of a batch is in, or none of it.
2. A window's Parquet file is written and renamed **before** the transaction that drops its buffer. A crash
   in between writes the same file again.
3. Offsets in Kafka are committed after both, and only for people's lag tools; nobody reads them back.

4. A batch without anything for this shard only moves `applied` on; that may wait in memory for up to half a
   second, or the next window that closes. After a crash the shard is then a little further back, and the
   ingestor rewinds to there.

A batch at or below `applied` changes nothing; one that starts past `applied + 1` is refused as a gap.

With `durability="process"` commits are not flushed: they survive the death of the process, and after a power
loss the shard is rebuilt from Kafka. With "machine" each commit is flushed to the disk first.
"""

import json
import struct
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streaming import environment
from streaming.config import StreamingSettings
from streaming.errors import GapError, StoreError
from streaming.hashing import UInt64
from streaming.rows import NEVER, EventColumns, Int64, Rows, blank_rows, row_dtype, update_rows
from streaming.windows import (
    BUFFERED,
    assemble,
    context_dtype,
    pack_contexts,
    pack_events,
    user_trust,
    window_of,
    with_trust,
    write_shard,
)

if TYPE_CHECKING:
    from lmdb import Transaction as _Transaction
    from lmdb import _Database as Database

    Transaction = _Transaction[bytes]
else:
    Transaction = Database = object

_POSITION = struct.Struct("<qqQ")  # applied offset, newest event time, dead letters
_SIGN = 1 << 63
_LAZY_S = 0.5


@dataclass(frozen=True)
class ShardBatch:
    """What one logical shard is told about one micro-batch of one partition, be it empty.

    `windows` names every window that any event of the whole micro-batch counts into, and `window_offsets` the
    last offset that does, so that all shards know the same windows; `dead_letters` are the
    offsets this shard is to count.
    """

    partition: int
    from_offset: int
    upto_offset: int  # inclusive; from_offset - 1 for a mere tick
    max_time_ms: int  # newest event time of the partition up to `upto_offset`
    idle: bool  # drained, and silent for longer than the time-out
    num_partitions: int
    windows: Int64
    window_offsets: Int64
    dead_letters: Int64
    events: EventColumns
    after_loss: bool = False  # retention deleted the records before `from_offset` unread: the gap is real


@dataclass(frozen=True)
class Position:
    """How far a shard has applied a partition."""

    applied: int
    max_time_ms: int
    dead_letters: int


@dataclass(frozen=True)
class ShardStats:
    """Exact counts of one logical shard since it was created."""

    users: int
    applied: int
    duplicates: int
    late: int
    dead_letters: int
    windows_closed: int
    closed_upto_ms: int


class ShardStore:
    """One logical shard on disk.

    Args:
        state_dir: folder of all shards.
        windows_dir: where closed windows go.
        shard: number of this logical shard.
        settings: streaming settings; must agree with those the store was created with.

    Raises:
        StoreError: the store on disk was created with another layout.
    """

    def __init__(self, state_dir: Path, windows_dir: Path, shard: int, settings: StreamingSettings) -> None:
        self.shard = shard
        self._settings = settings
        self._windows_dir = windows_dir
        self._dtype = row_dtype(settings.sequence_length, len(settings.event_types))
        self._length_ms = int(settings.windows.length_s * 1000)
        self._lateness_ms = int(settings.windows.lateness_s * 1000)
        self._idle: dict[int, bool] = {}
        self._committed_at: dict[int, float] = {}
        self._env = environment.open_writer(
            shard_path(state_dir, shard), settings.map_size_gib, sync=settings.durability == "machine"
        )
        self._rows = self._env.open_db(b"rows")
        self._meta = self._env.open_db(b"meta")
        self._buffers = self._env.open_db(b"buffers")
        self._check_layout()
        with self._env.begin() as txn:
            self._positions = stored_positions(txn, self._meta)
            self._counts = json.loads(txn.get(b"counts", db=self._meta) or b"{}")
            self._windows = set(json.loads(txn.get(b"windows", db=self._meta) or b"[]"))

    def positions(self) -> dict[int, Position]:
        """How far each partition has been applied."""
        return dict(self._positions)

    def apply(self, batch: ShardBatch) -> int:
        """Apply a batch, then close the windows that its watermark passed.

        Returns:
            The number of events that changed state.

        Raises:
            GapError: the batch starts past the next expected offset.
        """
        position = self._positions.get(batch.partition)
        if position is not None and batch.from_offset > position.applied + 1 and not batch.after_loss:
            raise GapError(batch.partition, position.applied + 1, batch.from_offset)
        changed = 0
        if position is None or batch.upto_offset > position.applied:
            if position is not None and self._carries_nothing(batch, position):
                self._positions[batch.partition] = self._advance(batch, position)
            else:
                changed = self._commit(batch, position)
        self._idle[batch.partition] = batch.idle
        self._close_windows(batch.num_partitions)
        return changed

    def _carries_nothing(self, batch: ShardBatch, position: Position) -> bool:
        """Whether a batch only moves the offset on, which may wait for the next commit (rule 4 above)."""
        recent = time.monotonic() - self._committed_at.get(batch.partition, -_LAZY_S) < _LAZY_S
        nothing = not len(batch.events) and not len(batch.dead_letters)
        return recent and nothing and self._new_windows(batch, position.applied) <= self._windows

    def _new_windows(self, batch: ShardBatch, applied: int) -> set[int]:
        """Windows that the records past `applied` count into."""
        starts = batch.windows[batch.window_offsets > applied]
        return set(np.maximum(starts, self._counts.get("closed_upto_ms", NEVER)).tolist())

    @staticmethod
    def _advance(batch: ShardBatch, position: Position | None) -> Position:
        applied = position.applied if position else batch.from_offset - 1
        dead = int((batch.dead_letters > applied).sum()) + (position.dead_letters if position else 0)
        newest = max(batch.max_time_ms, position.max_time_ms if position else NEVER)
        return Position(batch.upto_offset, newest, dead)

    def _commit(self, batch: ShardBatch, position: Position | None) -> int:
        applied = position.applied if position else batch.from_offset - 1
        new = batch.events.offset > applied
        events = batch.events if new.all() else batch.events.take(new)
        closed_upto = self._counts.get("closed_upto_ms", NEVER)
        counts = dict(self._counts)
        with self._env.begin(write=True) as txn:
            if len(events):
                late = events.window != window_of(events.time_ms, self._length_ms)
                window = np.maximum(events.window, closed_upto)
                events = EventColumns(**(events.__dict__ | {"window": window}))
                kept = self._update(txn, events, batch.partition, counts)
                changed = int(kept.sum())
                _add(counts, "applied", changed)
                _add(counts, "duplicates", len(events) - changed)
                _add(counts, "late", int((late | (window != batch.events.window[new]))[kept].sum()))
            else:
                changed = 0
            position = self._advance(batch, position)
            windows = self._windows | self._new_windows(batch, applied)
            self._put_position(txn, batch.partition, position)
            if counts != self._counts:
                txn.put(b"counts", json.dumps(counts).encode(), db=self._meta)
            if windows != self._windows:
                txn.put(b"windows", json.dumps(sorted(windows)).encode(), db=self._meta)
        self._positions[batch.partition] = position  # in memory only after the commit
        self._counts, self._windows = counts, windows
        self._committed_at[batch.partition] = time.monotonic()
        return changed

    def _put_position(self, txn: Transaction, partition: int, position: Position) -> None:
        txn.put(b"p%d" % partition, _POSITION.pack(*position.__dict__.values()), db=self._meta)

    def _update(
        self, txn: Transaction, events: EventColumns, partition: int, counts: dict[str, int]
    ) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
        users, owner = np.unique(events.user, return_inverse=True)
        rows = self._load(txn, users)
        done = update_rows(rows, owner, events, partition, self._settings.half_life_s * 1000)
        data, size = rows.tobytes(), self._dtype.itemsize
        keys = _keys(users)
        txn.cursor(db=self._rows).putmulti(
            [(key, data[i * size : (i + 1) * size]) for i, key in enumerate(keys)]
        )
        for window, before in done.contexts:
            self._buffer(txn, window, b"c", pack_contexts(before).tobytes(), counts)
        kept = events.take(done.kept)
        for window in np.unique(kept.window):
            part = kept.take(kept.window == window)
            self._buffer(txn, int(window), b"e", pack_events(part).tobytes(), counts)
        return done.kept

    def _buffer(
        self, txn: Transaction, window: int, kind: bytes, data: bytes, counts: dict[str, int]
    ) -> None:
        _add(counts, "sequence", 1)
        txn.put(_window_key(window) + kind + struct.pack(">Q", counts["sequence"]), data, db=self._buffers)

    def _load(self, txn: Transaction, users: UInt64) -> Rows:
        rows = blank_rows(users, self._dtype)
        found = txn.cursor(db=self._rows).getmulti(_keys(users))
        if found:
            known = np.frombuffer(b"".join(key for key, _ in found), ">u8").astype(np.uint64)
            stored = np.frombuffer(b"".join(value for _, value in found), self._dtype)
            rows[np.searchsorted(users, known)] = stored
        return rows

    def _close_windows(self, num_partitions: int) -> None:
        watermark = self._watermark(num_partitions)
        for start in sorted(self._windows):
            if watermark is None or start + self._length_ms > watermark:
                return
            self._close(start)

    def _watermark(self, num_partitions: int) -> int | None:
        """Event time that no partition is still behind; None while one has not spoken or all are idle."""
        times = []
        for partition in range(num_partitions):
            if self._idle.get(partition, False):
                continue
            position = self._positions.get(partition)
            if position is None or position.max_time_ms == NEVER:
                return None
            times.append(position.max_time_ms)
        return min(times) - self._lateness_ms if times else None

    def _close(self, start: int) -> None:
        prefix = _window_key(start)
        with self._env.begin(write=True) as txn:
            events = b"".join(value for _, value in _prefixed(txn, self._buffers, prefix + b"e"))
            contexts = b"".join(value for _, value in _prefixed(txn, self._buffers, prefix + b"c"))
            table = assemble(
                start,
                np.frombuffer(events, BUFFERED),
                np.frombuffer(contexts, context_dtype(self._settings.sequence_length)),
            )
            users = table["user"].to_numpy()
            if len(users):
                table = with_trust(table, user_trust(self._load(txn, users), users))
            write_shard(self._windows_dir, start, self.shard, table)
            for key in [key for key, _ in _prefixed(txn, self._buffers, prefix)]:
                txn.delete(key, db=self._buffers)
            counts = dict(self._counts)
            _add(counts, "windows_closed", 1)
            counts["closed_upto_ms"] = max(counts.get("closed_upto_ms", NEVER), start + self._length_ms)
            windows = self._windows - {start}
            for partition, position in self._positions.items():  # what closed it must not be known only here
                self._put_position(txn, partition, position)
            txn.put(b"counts", json.dumps(counts).encode(), db=self._meta)
            txn.put(b"windows", json.dumps(sorted(windows)).encode(), db=self._meta)
        self._counts, self._windows = counts, windows

    def rows(self) -> Rows:
        """All rows, in order of user hash."""
        with self._env.begin() as txn:
            data = b"".join(value for _, value in txn.cursor(db=self._rows))
        return np.frombuffer(data, self._dtype).copy()

    def stats(self) -> ShardStats:
        """Exact counts since the store was created."""
        with self._env.begin() as txn:
            users = txn.stat(self._rows)["entries"]
        return ShardStats(
            users=users,
            applied=self._counts.get("applied", 0),
            duplicates=self._counts.get("duplicates", 0),
            late=self._counts.get("late", 0),
            dead_letters=sum(position.dead_letters for position in self._positions.values()),
            windows_closed=self._counts.get("windows_closed", 0),
            closed_upto_ms=self._counts.get("closed_upto_ms", NEVER),
        )

    def close(self) -> None:
        """Flush and close the environment."""
        self._env.sync(True)
        environment.close(self._env)

    def _check_layout(self) -> None:
        settings = self._settings
        layout = {
            "logical_shards": settings.logical_shards,
            "sequence_length": settings.sequence_length,
            "event_types": list(settings.event_types),
            "half_life_s": settings.half_life_s,
            "window_length_s": settings.windows.length_s,
        }
        with self._env.begin(write=True) as txn:
            stored = json.loads(txn.get(b"layout", db=self._meta) or "null")
            if stored is None:
                txn.put(b"layout", json.dumps(layout).encode(), db=self._meta)
            elif stored != layout:
                changed = {
                    key: (stored.get(key), layout[key]) for key in layout if stored.get(key) != layout[key]
                }
                raise StoreError(
                    f"state in {self._env.path()} was created with other settings "
                    f"(stored, wanted): {changed}; "
                    "put the old values back, or start with an empty data_dir and replay the topic"
                )


def shard_path(state_dir: Path, shard: int) -> Path:
    """Folder of one logical shard's LMDB environment."""
    return state_dir / f"shard={shard:04d}"


def stored_positions(txn: Transaction, meta: Database) -> dict[int, Position]:
    """Applied position of each partition, as committed."""
    return {int(key[1:]): Position(*_POSITION.unpack(value)) for key, value in _prefixed(txn, meta, b"p")}


def _keys(users: UInt64) -> list[bytes]:
    data = users.astype(">u8").tobytes()  # big-endian: byte order is numeric order
    return [data[i : i + 8] for i in range(0, len(data), 8)]


def _window_key(start: int) -> bytes:
    return struct.pack(">Q", (start + _SIGN) % 2**64)  # shifted, so that byte order is time order


def _add(counts: dict[str, int], name: str, amount: int) -> None:
    counts[name] = counts.get(name, 0) + amount


def _prefixed(txn: Transaction, db: Database, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:
    cursor = txn.cursor(db=db)
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key, value


@contextmanager
def open_store(
    state_dir: Path, windows_dir: Path, shard: int, settings: StreamingSettings
) -> Iterator[ShardStore]:
    """Open a store for the length of a `with` block."""
    store = ShardStore(state_dir, windows_dir, shard, settings)
    try:
        yield store
    finally:
        store.close()
