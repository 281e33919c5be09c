"""Trust in the stored rows of users: what a closed window's screen, or a decision of a person, makes of it.

A row keeps its trust until a later window in which its user was active is screened: named there, the user gets that
trust, otherwise full trust again. Where a user was not active there is nothing to judge, and the row stays.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq

from streaming.hashing import UInt64
from streaming.windows import shard_file

if TYPE_CHECKING:
    from lmdb import Transaction as _Transaction
    from lmdb import _Database as Database

    Transaction = _Transaction[bytes]
else:
    Transaction = Database = object

Float32 = npt.NDArray[np.float32]

_PORTION = 10_000  # rows looked at together


def screened(
    windows_dir: Path, start_ms: int, shard: int, users: UInt64, trust: Float32
) -> tuple[UInt64, Float32]:
    """What a window's screen says of this shard's users who were active in it: 1, but for those it names.

    Who is named but not in the window's file was erased since, and is left out. Where the file is gone the named are
    believed, and nobody else is judged.

    Args:
        users: (U,) hashes of those below full trust, of any shard. trust: (U,).
    """
    try:
        active: UInt64 = pq.read_table(
            shard_file(windows_dir, start_ms, shard), columns=["user"], partitioning=None
        )["user"].to_numpy()
    except FileNotFoundError:
        active = np.sort(users)
    order = np.argsort(users)
    users, trust = users[order], trust[order]
    judged = np.ones(len(active), np.float32)
    place = np.searchsorted(users, active)
    named = np.flatnonzero(place < len(users))
    named = named[users[place[named]] == active[named]]
    judged[named] = trust[place[named]]
    return active, judged


def put_trust(
    txn: Transaction, rows: Database, dtype: np.dtype[np.void], users: UInt64, trust: Float32
) -> int:
    """Write the trust of users who have a row; a row that has it already is not touched.

    Args:
        rows: the database of rows, by big-endian user hash. dtype: their layout.
        users: (U,) hashes. trust: (U,).

    Returns:
        The number of rows that changed.
    """
    field, at = dtype["trust"], dtype.fields["trust"][1]  # type: ignore[index]
    end = dtype.itemsize - at  # rows are stored without their first places: counted from the end
    changed = 0
    for part in _portions(len(users)):
        wanted = dict(zip(users[part].astype(">u8").view("V8").tolist(), trust[part].tolist(), strict=True))
        news = []
        for key, row in txn.cursor(db=rows).getmulti(sorted(wanted)):
            packed = np.array(wanted[key], field).tobytes()
            if row[-end : len(row) - end + len(packed)] != packed:
                news.append((key, row[:-end] + packed + row[len(row) - end + len(packed) :]))
        txn.cursor(db=rows).putmulti(news)
        changed += len(news)
    return changed


def _portions(count: int) -> Iterator[slice]:
    for start in range(0, count, _PORTION):
        yield slice(start, start + _PORTION)
