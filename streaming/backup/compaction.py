"""A copy of a shard's environment that holds what is live, and not one byte of what was erased.

LMDB's own compacting copy (`env.copy(compact=True)`) leaves free pages out, but copies overflow pages (values of
more than about 2 kB) whole, and the end of such a page behind its value holds whatever the writer's recycled page
buffer held before: fragments of rows, those of erased users among them. So keys and values are copied instead, in
order, into a fresh environment. That also packs its pages densely: about three quarters of the size.

The price is that the copying thread takes the interpreter lock now and then, where `env.copy` never does: 100,000
rows of 1.4 kB take 0.2 to 0.4 s, and a writer in another thread does about half of its work in that time.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from streaming.batch import Position
from streaming.layout import stored_positions

if TYPE_CHECKING:
    from lmdb import _Database as Database

    Pairs = Iterator[tuple[bytes, bytes]]
else:
    Database = Pairs = object

_MOST_DBS = 16
_CHUNK_BYTES = 8 * 2**20  # copied in one transaction: bounds the memory that its new pages take


def copy_live(env: lmdb.Environment, folder: Path) -> dict[int, Position]:
    """Copy what is live at one instant, while writers go on.

    Args:
        env: the source; may be in use by other threads of this process and by other processes.
        folder: an empty folder; gets a `data.mdb`, not flushed to the disk.

    Returns:
        The applied position of each partition in the copy.
    """
    copy = lmdb.open(
        str(folder),
        map_size=env.info()["map_size"],
        max_dbs=_MOST_DBS,
        sync=False,
        metasync=False,
        lock=False,
    )
    try:
        with env.begin() as txn:
            # Opened in this transaction: without one, open_db begins a write transaction and keeps the interpreter
            # lock while it waits for the writer, who may need that lock to finish.
            names = [bytes(name) for name in txn.cursor().iternext(keys=True, values=False)]
            databases = {name: env.open_db(name, txn, create=False) for name in names}
            for name, database in databases.items():
                assert not any(database.flags().values()), f"{name!r} has flags that a copy would lose"
                _copy_pairs(txn.cursor(db=database).iternext(), copy, copy.open_db(name))
            return stored_positions(txn, databases[b"meta"]) if b"meta" in databases else {}
    finally:
        copy.close()


def _copy_pairs(pairs: Pairs, copy: lmdb.Environment, database: Database) -> None:
    for chunk in _chunks(pairs):
        with copy.begin(write=True) as txn:
            txn.cursor(db=database).putmulti(chunk, append=True)


def _chunks(pairs: Pairs) -> Iterator[list[tuple[bytes, bytes]]]:
    chunk: list[tuple[bytes, bytes]] = []
    size = 0
    for pair in pairs:
        chunk.append(pair)
        size += len(pair[1])
        if size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
