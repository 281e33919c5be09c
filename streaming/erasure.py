"""Erasing a user for good: from the buffers of open windows, from closed windows' files, and the proof of it.

The row itself goes with the shard's own update. What is done here is part of the same transaction, but for the
Parquet files: those are rewritten before it commits, so that after a crash in between they are rewritten again.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from streaming.hashing import UInt64
from streaming.rows import Int64
from streaming.windows import BUFFERED, Contexts, replace_file


@dataclass(frozen=True)
class Proof:
    """That a user was erased: when, what, and by which record."""

    erased_upto_ms: int  # event time: nothing of this user up to here is kept or taken in again
    requested_ms: int  # when the broker took the request
    topic_partition: int  # code
    offset: int
    events: int  # applied in the user's life until then
    buffered_events: int  # of those, in windows still open
    windows: list[str]  # closed windows whose files were rewritten

    def pack(self, earlier: bytes | None) -> bytes:
        """As it is stored; erasures before this one are kept in the list."""
        return json.dumps([*json.loads(earlier or b"[]"), asdict(self)]).encode()


def read_proofs(stored: bytes | None) -> list[Proof]:
    """Read what `Proof.pack` wrote; empty where nothing is stored."""
    return [Proof(**proof) for proof in json.loads(stored or b"[]")]


def without_users(packed: bytes, users: UInt64) -> tuple[bytes, Int64]:
    """Take users out of a buffer of events.

    Returns:
        What is left of it, and how many events of each of `users` it held (U,).
    """
    records = np.frombuffer(packed, BUFFERED)
    gone = np.isin(records["user"], users)
    held = (records["user"][gone][:, None] == users).sum(axis=0).astype(np.int64)
    return records[~gone].tobytes(), held


def without_contexts(packed: bytes, users: UInt64) -> bytes:
    """Take users out of a buffer of contexts."""
    contexts = Contexts.unpack(packed)
    gone = np.isin(contexts.user, users)
    return contexts.take(~gone).pack() if gone.any() else packed


def erase_from_files(windows_dir: Path, shard: int, users: UInt64) -> dict[int, list[str]]:
    """Rewrite this shard's file of every closed window that holds one of `users`.

    Returns:
        For each user found, the windows (folder names without `start=`).
    """
    found: dict[int, list[str]] = {}
    for file in sorted(windows_dir.glob(f"start=*/shard={shard:04d}.parquet")):
        held = _held(file, users)
        if held:
            table = pq.read_table(file, partitioning=None)
            gone = pc.is_in(table["user"], pa.array(users, pa.uint64()))
            replace_file(file, table.filter(pc.invert(gone)))
            for user in held:
                found.setdefault(user, []).append(file.parent.name.removeprefix("start="))
    return found


def _held(file: Path, users: UInt64) -> Iterable[int]:
    column = pq.read_table(file, columns=["user"], partitioning=None)["user"].to_numpy()
    return [int(user) for user in users if user in column]
