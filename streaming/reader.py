"""Read user rows from another process: straight from the page cache, in microseconds.

The shards' LMDB environments are opened read-only. A reader sees the newest commit at the moment of the
call and never blocks the writer.
"""

import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb
import numpy as np

from streaming import environment
from streaming.config import StreamingSettings
from streaming.erasure import Proof, read_proofs
from streaming.hashing import UInt64, hash_one
from streaming.layout import shard_path, stored_positions
from streaming.rows import NEVER, Rows, blank_rows, row_dtype, unpack_rows

if TYPE_CHECKING:
    from lmdb import _Database as Database

    _Opened = tuple[lmdb.Environment, Database, Database, Database]  # rows, meta, proofs


class StateReader:
    """Reads rows of all logical shards on this machine; safe to share between threads.

    Args:
        state_dir: folder of the shards; they may appear later.
        settings: streaming settings, which give the layout of rows.
    """

    def __init__(self, state_dir: Path, settings: StreamingSettings) -> None:
        self._state_dir, self._num_shards = state_dir, settings.logical_shards
        self._dtype = row_dtype(settings)
        self._open: dict[int, _Opened] = {}
        self._lock = threading.Lock()

    def read(self, user_ids: Sequence[str]) -> Rows:
        """Return the rows of users, (N,); `total == 0` for unknown ones."""
        return self.read_hashed(np.array([hash_one(user) for user in user_ids], np.uint64))  # few: no columns

    def read_hashed(self, users: UInt64) -> Rows:
        """Like `read`, for those of whom only the hash is known, (N,)."""
        rows = blank_rows(users, self._dtype)
        for position, user in enumerate(users):
            shard = self._shard(int(user) % self._num_shards)
            if shard is None:
                continue
            env, db, _, _ = shard
            with env.begin(db) as txn:
                value = txn.get(int(user).to_bytes(8, "big"))
                if value is not None:
                    rows[position] = unpack_rows([value], self._dtype)[0]
        return rows

    def newest_ms(self) -> int | None:
        """Newest event time in the stream, epoch ms, at most about a second old; None before the first event."""
        shard = self._shard(0)  # every shard knows how far all partitions are
        if shard is None:
            return None
        env, _, meta, _ = shard
        with env.begin() as txn:
            newest = max((p.max_time_ms for p in stored_positions(txn, meta).values()), default=NEVER)
        return None if newest == NEVER else newest

    def erasures(self, user_id: str) -> list[Proof]:
        """Proofs that a user was erased, oldest first; empty for one that never was."""
        user = hash_one(user_id)
        shard = self._shard(user % self._num_shards)
        if shard is None:
            return []
        env, _, _, db = shard
        with env.begin(db) as txn:
            return read_proofs(txn.get(user.to_bytes(8, "big")))

    def _shard(self, shard: int) -> "_Opened | None":
        opened = self._open.get(shard)
        if opened is not None:
            return opened
        with self._lock:
            if shard in self._open:
                return self._open[shard]
            env = environment.open_reader(shard_path(self._state_dir, shard))
            if env is None:
                return None
            try:
                rows, meta, proofs = environment.open_databases(env, b"rows", b"meta", b"proofs")
            except lmdb.Error:
                environment.close(env)
                return None  # the writer is still creating it
            self._open[shard] = env, rows, meta, proofs
            return self._open[shard]

    def close(self) -> None:
        """Close all environments; no read may follow."""
        with self._lock:
            for env, *_ in self._open.values():
                environment.close(env)
            self._open.clear()
