"""Buffers of open windows in a shard's store: events ("e") and contexts ("c") in order of arrival, by window."""

import struct
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from streaming.erasure import without_contexts, without_users
from streaming.hashing import UInt64
from streaming.layout import prefixed
from streaming.rows import Int64
from streaming.windows import BUFFERED, Contexts, assemble

if TYPE_CHECKING:
    from lmdb import Transaction as _Transaction
    from lmdb import _Database as Database

    Transaction = _Transaction[bytes]
else:
    Transaction = Database = object

EVENTS, CONTEXTS = b"e", b"c"
_SIGN = 1 << 63


def put(txn: Transaction, buffers: Database, start: int, kind: bytes, sequence: int, data: bytes) -> None:
    """Append to the buffer of a window; `sequence` grows from one to the next."""
    txn.put(_key(start) + kind + struct.pack(">Q", sequence), data, db=buffers)


def table_of(txn: Transaction, buffers: Database, start: int) -> pa.Table:
    """What is buffered of a window, as its file holds it (trust not filled in)."""
    events = b"".join(value for _, value in prefixed(txn, buffers, _key(start) + EVENTS))
    contexts = Contexts.joined([value for _, value in prefixed(txn, buffers, _key(start) + CONTEXTS)])
    return assemble(start, np.frombuffer(events, BUFFERED), contexts)


def drop(txn: Transaction, buffers: Database, start: int) -> None:
    """Forget the buffer of a window."""
    for key in [key for key, _ in prefixed(txn, buffers, _key(start))]:
        txn.delete(key, db=buffers)


def erase(txn: Transaction, buffers: Database, starts: Iterable[int], users: UInt64) -> Int64:
    """Take users out of the buffers of windows; returns how many events of each there were (U,)."""
    found = np.zeros(len(users), np.int64)
    for start in sorted(starts):
        for key, value in list(prefixed(txn, buffers, _key(start) + EVENTS)):
            left, held = without_users(value, users)
            txn.put(key, left, db=buffers)
            found += held
        for key, value in list(prefixed(txn, buffers, _key(start) + CONTEXTS)):
            txn.put(key, without_contexts(value, users), db=buffers)
    return found


def _key(start: int) -> bytes:
    return struct.pack(">Q", (start + _SIGN) % 2**64)  # shifted, so that byte order is time order
