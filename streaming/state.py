"""The store of one logical shard: user rows, open windows and applied offsets in one LMDB environment.

LMDB gives one writer, many reading processes through the page cache, and transactions. The order in which
things become durable is the exactly-once argument:

1. The rows, the buffered window events and `applied[partition] = upto` of every partition in the batch change
   in **one** transaction. Either all of a batch is in, or none of it.
2. A window's Parquet file is written and renamed **before** the transaction that drops its buffer. A crash
   in between writes the same file again.
3. Offsets in Kafka are committed after both, and only for people's lag tools; nobody reads them back.

4. A batch without anything for this shard only moves `applied` on; that may wait in memory for up to half a
   second, or the next window that closes. After a crash the shard is then a little further back, and the
   ingestor rewinds to there.

5. What a window's screen or a person decides about trust changes rows in a transaction of its own, with the note
   of how far that is; it moves no offset, and only the trust column of later windows depends on it.

A batch at or below `applied` changes nothing; one that starts past `applied + 1` is refused as a gap. One process
hosts a shard at a time: a file lock, which the kernel frees when its holder dies, keeps a second one out.

All shards must close the same windows with the same events, though each closes them by itself. An event's window
is decided by its partition's log alone, and a window closes when no partition's log can name it any more. The one
exception is a partition that is idle, or new, while windows close: the shard notes that in its position (the
floor), and before records of such a partition are taken in, its ingestor collects the floors of all shards.

With `durability="process"` commits are not flushed: they survive the death of the process, and after a power
loss the shard is rebuilt from Kafka. With "machine" each commit is flushed to the disk first.
"""

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from streaming import buffers, environment, expiry, metrics
from streaming.batch import Position, Progress, ShardBatch
from streaming.config import StreamingSettings
from streaming.erasure import Proof, erase_from_files, read_proofs
from streaming.errors import GapError
from streaming.hashing import UInt64
from streaming.layout import check_layout, own, put_position, shard_path, stored_positions
from streaming.rows import (
    NEVER,
    Bools,
    EventColumns,
    Int64,
    Rows,
    blank_rows,
    pack_rows,
    row_dtype,
    unpack_rows,
)
from streaming.trust_rows import Float32, put_trust, screened
from streaming.update import DUPLICATE, ERASED, ERASURE, KEPT, Rules, Touched, update_rows
from streaming.windows import (
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

_LAZY_S = 0.5
_TOTALS = ("applied", "duplicates", "late", "erasures", "erased", "expired", "windows_closed")


@dataclass(frozen=True)
class ShardStats:
    """Exact counts of one logical shard since it was created."""

    shard: int
    users: int
    applied: int
    duplicates: int
    late: int
    dead_letters: int
    erasures: int  # users erased on request
    erased: int  # events dropped because they came after their user's erasure and are older
    expired: int  # users dropped after their time to live
    windows_closed: int
    closed_upto_ms: int
    screened_ms: int  # start of the newest window whose trust the rows have; NEVER before the first
    decisions: int  # bytes of the journal of people's decisions that the rows have


class ShardStore:
    """One logical shard on disk.

    Args:
        state_dir: folder of all shards.
        windows_dir: where closed windows go.
        shard: number of this logical shard.
        settings: streaming settings; must agree with those the store was created with.

    Raises:
        StoreError: the store on disk was created with another layout, or another process hosts it.
    """

    def __init__(self, state_dir: Path, windows_dir: Path, shard: int, settings: StreamingSettings) -> None:
        self.shard = shard
        self._settings, self._rules = settings, Rules.of(settings)
        self._windows_dir = windows_dir
        self._dtype = row_dtype(settings)
        self._length_ms = int(settings.windows.length_s * 1000)
        self._lateness_ms = int(settings.windows.lateness_s * 1000)
        self._idle: dict[int, bool] = {}
        self._committed_at: dict[int, float] = {}
        self._scanned_upto = b""
        self.applied_ms: list[Int64] = []  # event times of what the newest batch changed, a few arrays
        self.watermark_ms: int | None = None  # event time, epoch ms; None before the first
        self.path = shard_path(state_dir, shard)
        self._lock = own(self.path)
        try:
            self._env = environment.open_writer(
                self.path, settings.map_size_gib, sync=settings.durability == "machine"
            )
            self._rows = self._env.open_db(b"rows")
            self._meta = self._env.open_db(b"meta")
            self._buffers = self._env.open_db(b"buffers")
            self._proofs = self._env.open_db(b"proofs")
            with self._env.begin(write=True) as txn:
                check_layout(txn, self._meta, settings, self._env.path())
        except BaseException:
            os.close(self._lock)
            raise
        with self._env.begin() as txn:
            self._positions = stored_positions(txn, self._meta)
            self._counts = json.loads(txn.get(b"counts", db=self._meta) or b"{}")
            self._windows = set(json.loads(txn.get(b"windows", db=self._meta) or b"[]"))
            self._any_proofs = txn.stat(self._proofs)["entries"] > 0

    def positions(self) -> dict[int, Position]:
        """How far each partition has been applied."""
        return dict(self._positions)

    @property
    def closed_upto_ms(self) -> int:
        """End of the newest window closed; NEVER before the first."""
        return int(self._counts.get("closed_upto_ms", NEVER))

    def apply(self, batch: ShardBatch) -> int:
        """Apply a batch, then close the windows that its watermark passed.

        Returns:
            The number of events that changed state.

        Raises:
            GapError: the batch starts past the next expected offset.
        """
        self.applied_ms = []
        for step in batch.steps:
            position = self._positions.get(step.partition)
            if position is not None and position.is_of_another(step.generation):
                position = self._reset(step, position)
            if position is not None and step.from_offset > position.applied + 1 and not step.after_loss:
                raise GapError(step.partition, position.applied + 1, step.from_offset)
        news = [
            step
            for step in batch.steps
            if step.partition not in self._positions
            or step.upto_offset > self._positions[step.partition].applied
        ]
        changed = 0
        if not len(batch.events) and all(map(self._may_wait, news)):
            self._positions |= {
                step.partition: _advance(step, self._positions[step.partition]) for step in news
            }
        elif news:
            changed = self._commit(batch)
        for step in batch.steps:
            self._idle[step.partition] = step.idle
        self._close_windows(batch.partitions)
        return changed

    def _reset(self, step: Progress, position: Position) -> Position:
        """Start at the beginning of a topic that was made anew; what was applied from the old one stays."""
        before = step.from_offset - 1
        start = Position(
            before,
            position.max_time_ms,
            position.dead_letters,
            floor_ms=self.closed_upto_ms,
            floor_from=before,
            generation=step.generation,
        )
        with self._env.begin(write=True) as txn:
            self._put_position(txn, step.partition, start)
        self._positions[step.partition] = start
        return start

    def _may_wait(self, step: Progress) -> bool:
        """Whether a step without events for this shard may wait for the next commit (rule 4 above)."""
        position = self._positions.get(step.partition)
        if position is None or len(step.dead_letters):
            return False
        recent = time.monotonic() - self._committed_at.get(step.partition, -_LAZY_S) < _LAZY_S
        return recent and self._new_windows(step, position.applied) <= self._windows

    def _new_windows(self, step: Progress, applied: int) -> set[int]:
        """Windows that the records past `applied` count into."""
        starts = step.windows[step.window_offsets > applied]
        return set(np.maximum(starts, self.closed_upto_ms).tolist())

    def _commit(self, batch: ShardBatch) -> int:
        before = {step.partition: self._start_of(step) for step in batch.steps}
        events = _unapplied(batch.events, before)
        counts, windows, moved = dict(self._counts), set(self._windows), {}
        with self._env.begin(write=True) as txn:
            changed = self._apply_events(txn, events, counts) if len(events) else 0
            for step in batch.steps:
                position = before[step.partition]
                moved[step.partition] = _advance(step, position)
                windows |= self._new_windows(step, position.applied)
                self._put_position(txn, step.partition, moved[step.partition])
            self._put_json(txn, b"counts", counts, self._counts)
            self._put_json(txn, b"windows", sorted(windows), sorted(self._windows))
        self._positions |= moved  # in memory only after the commit
        self._counts, self._windows = counts, windows
        self._any_proofs |= counts.get("erasures", 0) > 0
        self._committed_at |= dict.fromkeys(moved, time.monotonic())
        return changed

    def _start_of(self, step: Progress) -> Position:
        """Where a partition stands before a step; a new one stands behind all windows closed so far."""
        start = step.from_offset - 1
        return self._positions.get(step.partition) or Position(
            start, floor_ms=self.closed_upto_ms, floor_from=start
        )

    def _put_position(self, txn: Transaction, partition: int, position: Position) -> None:
        put_position(txn, self._meta, partition, position)

    def _put_json(self, txn: Transaction, key: bytes, value: object, before: object) -> None:
        if value != before:
            txn.put(key, json.dumps(value).encode(), db=self._meta)

    def _apply_events(self, txn: Transaction, events: EventColumns, counts: dict[str, int]) -> int:
        own_window = window_of(events.time_ms, self._length_ms)
        events = replace(events, window=np.maximum(events.window, self.closed_upto_ms))
        users, owner = np.unique(events.user, return_inverse=True)
        rows = self._load(txn, users)
        erased_upto = self._erased_upto(txn, users)
        done = update_rows(rows, owner, events, self._rules, erased_upto)
        kept = done.outcome == KEPT
        buffered = kept
        if done.erased:
            last = np.full(len(users), -1)
            last[list(done.erased)] = list(done.erased.values())
            buffered = kept & (np.arange(len(events)) > last[owner])
            self._erase(txn, users, owner, events, done, erased_upto, kept & ~buffered)
            _add(counts, "erasures", int((done.outcome == ERASURE).sum()))
        self._store(txn, users, rows)
        for window, before in done.contexts:
            if len(before.user):
                self._buffer(txn, window, buffers.CONTEXTS, before.pack(), counts)
        part = events.take(buffered)
        for window in np.unique(part.window):
            packed = pack_events(part.take(part.window == window)).tobytes()
            self._buffer(txn, int(window), buffers.EVENTS, packed, counts)
        self.applied_ms.append(events.time_ms[kept])
        _add(counts, "applied", int(kept.sum()))
        _add(counts, "duplicates", int((done.outcome == DUPLICATE).sum()))
        _add(counts, "erased", int((done.outcome == ERASED).sum()))
        _add(counts, "expired", done.expired)
        _add(counts, "late", int((events.window != own_window)[kept].sum()))
        return int(kept.sum())

    def _erased_upto(self, txn: Transaction, users: UInt64) -> Int64:
        upto = np.full(len(users), NEVER)
        if self._any_proofs:
            for key, stored in txn.cursor(db=self._proofs).getmulti(_keys(users)):
                newest = max(proof.erased_upto_ms for proof in read_proofs(stored))
                upto[np.searchsorted(users, np.uint64(int.from_bytes(key, "big")))] = newest
        return upto

    def _erase(
        self,
        txn: Transaction,
        users: UInt64,
        owner: Int64,
        events: EventColumns,
        done: Touched,
        erased_upto: Int64,
        unbuffered: Bools,
    ) -> None:
        """Take erased users out of buffers and files, and leave a proof of each."""
        erasures = np.array(sorted(done.erased))
        gone = users[erasures]
        before = self._load(txn, gone)["total"]
        buffered = buffers.erase(txn, self._buffers, self._windows, gone)
        rewritten = erase_from_files(self._windows_dir, self.shard, gone)
        for place, row in enumerate(erasures.tolist()):
            record = done.erased[row]
            in_batch = int((unbuffered & (owner == row)).sum())
            proof = Proof(
                erased_upto_ms=int(erased_upto[row]),
                requested_ms=int(events.ingested_ms[record]),
                topic_partition=int(events.partition[record]),
                offset=int(events.offset[record]),
                events=int(before[place]) + in_batch,
                buffered_events=int(buffered[place]) + in_batch,
                windows=rewritten.get(int(users[row]), []),
            )
            key = _keys(users[row : row + 1])[0]
            txn.put(key, proof.pack(txn.get(key, db=self._proofs)), db=self._proofs)

    def _store(self, txn: Transaction, users: UInt64, rows: Rows) -> None:
        """Put rows, or delete those of users that were erased and not seen since."""
        empty = rows["total"] == 0
        if empty.any():
            for key in _keys(users[empty]):
                txn.delete(key, db=self._rows)
            users, rows = users[~empty], rows[~empty]
        txn.cursor(db=self._rows).putmulti(zip(_keys(users), pack_rows(rows), strict=True))

    def _buffer(
        self, txn: Transaction, window: int, kind: bytes, data: bytes, counts: dict[str, int]
    ) -> None:
        _add(counts, "sequence", 1)
        buffers.put(txn, self._buffers, window, kind, counts["sequence"], data)

    def _load(self, txn: Transaction, users: UInt64) -> Rows:
        """Rows of users, which are sorted; blank ones for those not stored."""
        keys = _keys(users)
        found = txn.cursor(db=self._rows).getmulti(keys)
        if len(found) == len(users):
            return unpack_rows([value for _, value in found], self._dtype)
        stored = dict(found)
        blank = blank_rows(users[:1], self._dtype).tobytes()
        rows = unpack_rows([stored.get(key, blank) for key in keys], self._dtype)
        rows["user"] = users
        return rows

    def expire(self) -> int:
        """Look at the next `state.ttl_scan_rows` rows and drop users past their time to live.

        Rows that are not reached yet count as dropped all the same: an event that finds one starts it anew. So
        the state does not depend on when this is called.
        """
        if self._rules.ttl_ms is None or not self._positions:
            return 0
        with self._env.begin() as txn:
            pairs, self._scanned_upto = expiry.scan(
                txn, self._rows, self._scanned_upto, self._settings.state.ttl_scan_rows
            )
        dead = expiry.expired(
            pairs, self._dtype, self._positions.items(), self._rules.ttl_ms, self._lateness_ms
        )
        if dead:
            counts = dict(self._counts)
            _add(counts, "expired", len(dead))
            with self._env.begin(write=True) as txn:
                for key in dead:
                    txn.delete(key, db=self._rows)
                self._put_json(txn, b"counts", counts, self._counts)
                self._put_positions(txn)  # what the decision rests on
            self._counts = counts
        return len(dead)

    def set_trust(self, window_start_ms: int, users: UInt64, trust: Float32) -> int:
        """Take in the screen of a closed window; see `streaming.trust_rows` for what it changes.

        Only once this shard has closed the window, and only after those before it: again, or out of turn, nothing
        changes. The rows and the note of the window are one transaction.

        Args:
            window_start_ms: start of the window, epoch ms.
            users: (U,) hashes of those below full trust, of any shard.
            trust: (U,) from 0 to 1.

        Returns:
            The number of rows that changed.
        """
        end = window_start_ms + self._length_ms
        if window_start_ms <= self._counts.get("screened_ms", NEVER) or end > self.closed_upto_ms:
            return 0
        judged = screened(self._windows_dir, window_start_ms, self.shard, users, trust)
        return self._put_trust(*judged, screened_ms=window_start_ms)

    def set_decided(self, upto: int, users: UInt64, trust: Float32) -> int:
        """Take in people's decisions about users; rows of others stay.

        Args:
            upto: length of the journal of decisions, bytes: says which were taken in.
            users: (U,) hashes of all users about whom something was decided, of any shard.
            trust: (U,) 1 for those who were released, 0 for the others.

        Returns:
            The number of rows that changed.
        """
        return self._put_trust(users, trust, decisions=upto)

    def _put_trust(self, users: UInt64, trust: Float32, **noted: int) -> int:
        counts = self._counts | noted
        with self._env.begin(write=True) as txn:
            changed = put_trust(txn, self._rows, self._dtype, users, trust)
            self._put_json(txn, b"counts", counts, self._counts)
        self._counts = counts
        return changed

    def _put_positions(self, txn: Transaction) -> None:
        for partition, position in self._positions.items():
            self._put_position(txn, partition, position)

    def _close_windows(self, partitions: Iterable[int]) -> None:
        partitions = tuple(partitions)
        watermark = self.watermark_ms = self._watermark(partitions)
        for start in sorted(self._windows):
            if watermark is None or start + self._length_ms > watermark:
                return
            self._close(start, partitions)

    def _watermark(self, partitions: Iterable[int]) -> int | None:
        """Event time that no partition is still behind; None while one has not spoken.

        Idle partitions are not waited for; where all are, those that never spoke are not.
        """
        active = [partition for partition in partitions if not self._idle.get(partition, False)]
        times = []
        for partition in active or partitions:
            position = self._positions.get(partition)
            if position is not None and position.max_time_ms != NEVER:
                times.append(position.max_time_ms)
            elif active:
                return None
        return min(times) - self._lateness_ms if times else None

    def _close(self, start: int, partitions: tuple[int, ...]) -> None:
        end = start + self._length_ms
        positions = dict(self._positions)
        for partition, position in self._positions.items():
            if partition not in partitions or self._idle.get(partition, False):  # nobody waited for it
                positions[partition] = replace(
                    position, floor_ms=max(position.floor_ms, end), floor_from=position.applied
                )
        with self._env.begin(write=True) as txn:
            table = buffers.table_of(txn, self._buffers, start)
            users = table["user"].to_numpy()
            if len(users):
                table = with_trust(table, user_trust(self._load(txn, users), users))
            write_shard(self._windows_dir, start, self.shard, table)
            metrics.WINDOW_ROWS.observe(len(users))
            buffers.drop(txn, self._buffers, start)
            counts = dict(self._counts)
            _add(counts, "windows_closed", 1)
            counts["closed_upto_ms"] = max(self.closed_upto_ms, end)
            windows = self._windows - {start}
            for partition, position in positions.items():  # what closed it must not be known only here
                self._put_position(txn, partition, position)
            self._put_json(txn, b"counts", counts, self._counts)
            self._put_json(txn, b"windows", sorted(windows), sorted(self._windows))
        self._counts, self._windows, self._positions = counts, windows, positions

    def rows(self) -> Rows:
        """All rows, in order of user hash."""
        with self._env.begin() as txn:
            return unpack_rows([value for _, value in txn.cursor(db=self._rows)], self._dtype)

    def stats(self) -> ShardStats:
        """Exact counts since the store was created."""
        with self._env.begin() as txn:
            users = txn.stat(self._rows)["entries"]
        return ShardStats(
            shard=self.shard,
            users=users,
            closed_upto_ms=self.closed_upto_ms,
            screened_ms=self._counts.get("screened_ms", NEVER),
            decisions=self._counts.get("decisions", 0),
            **self.totals(),
        )

    def totals(self) -> dict[str, int]:
        """The counts among `stats` that only grow; this reads nothing from the disk."""
        totals = {name: self._counts.get(name, 0) for name in _TOTALS}
        return totals | {"dead_letters": sum(position.dead_letters for position in self._positions.values())}

    def disk_bytes(self) -> int:
        """What the store uses on disk."""
        return int(self._env.info()["last_pgno"] + 1) * int(self._env.stat()["psize"])

    def close(self) -> None:
        """Make everything durable, close the environment and let another process host the shard."""
        with self._env.begin(write=True) as txn:
            self._put_positions(txn)
        self._env.sync(True)
        environment.close(self._env)
        os.close(self._lock)


def _unapplied(events: EventColumns, before: Mapping[int, Position]) -> EventColumns:
    """Those past what is applied of their partitions."""
    codes = np.array(sorted(before))
    applied = np.array([before[code].applied for code in codes.tolist()])
    new = events.offset > applied[np.searchsorted(codes, events.partition)]
    return events if new.all() else events.take(new)


def _advance(step: Progress, position: Position) -> Position:
    dead = int((step.dead_letters > position.applied).sum())
    return replace(
        position,
        applied=max(step.upto_offset, position.applied),
        max_time_ms=max(step.max_time_ms, position.max_time_ms),
        generation=step.generation or position.generation,
        dead_letters=position.dead_letters + dead,
    )


def _keys(users: UInt64) -> list[bytes]:
    keys: list[bytes] = users.astype(">u8").view("V8").tolist()  # big-endian: byte order is numeric order
    return keys


def _add(counts: dict[str, int], name: str, amount: int) -> None:
    counts[name] = counts.get(name, 0) + amount


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
