"""Which stored rows are past their time to live, a portion of them at a time."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from streaming.batch import Position
from streaming.rows import NEVER, unpack_rows

if TYPE_CHECKING:
    from lmdb import Transaction as _Transaction
    from lmdb import _Database as Database

    Transaction = _Transaction[bytes]
else:
    Transaction = Database = object


def scan(
    txn: Transaction, rows: Database, after: bytes, count: int
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The next `count` rows from the key `after` on (empty: from the first), and where to go on; empty at the end."""
    cursor = txn.cursor(db=rows)
    found = cursor.set_range(after) if after else cursor.first()
    pairs = []
    for pair in cursor.iternext() if found else ():
        pairs.append(pair)
        if len(pairs) > count:
            break
    beyond = len(pairs) > count
    return pairs, pairs.pop()[0] if beyond else b""


def expired(
    pairs: list[tuple[bytes, bytes]],
    dtype: np.dtype[np.void],
    positions: Iterable[tuple[int, Position]],
    ttl_ms: int,
    lateness_ms: int,
) -> list[bytes]:
    """Keys of those stored rows whose newest event is older than `ttl_ms` behind their partition's watermark."""
    if not pairs:
        return []
    rows = unpack_rows([value for _, value in pairs], dtype)
    clock = np.full(len(rows), NEVER)
    for partition, position in positions:
        if position.max_time_ms != NEVER:
            clock[rows["partition"] == partition] = position.max_time_ms - lateness_ms
    dead = np.flatnonzero((clock != NEVER) & (rows["last_ms"] < clock - ttl_ms))
    return [pairs[row][0] for row in dead.tolist()]
