"""Where a logical shard lies on disk, what it was created with, who hosts it, and how far it is."""

import fcntl
import json
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming.batch import Position
from streaming.config import StreamingSettings
from streaming.errors import StoreError

if TYPE_CHECKING:
    from lmdb import Transaction as _Transaction
    from lmdb import _Database as Database

    Transaction = _Transaction[bytes]
else:
    Transaction = Database = object

_POSITION = struct.Struct("<qqQqqq")


def store_layout(settings: StreamingSettings) -> dict[str, Any]:
    """The settings that a store on disk depends on: with others it cannot be opened."""
    return {
        "logical_shards": settings.logical_shards,
        "sequence_length": settings.sequence_length,
        "event_types": list(settings.event_types),
        "half_lives_s": list(settings.state.half_lives_s),
        "categories": list(settings.state.categories),
        "session_gap_s": settings.state.session_gap_s,
        "ttl_s": settings.state.ttl_s,
        "window_length_s": settings.windows.length_s,
        "topics": [source.topic for source in settings.sources],  # a partition's code counts them
    }


def check_layout(txn: Transaction, meta: Database, settings: StreamingSettings, path: str) -> None:
    """Note the settings that a new store depends on, or hold an old one's against them.

    Args:
        path: where the store is, for the message.

    Raises:
        StoreError: the store was created with others.
    """
    layout = store_layout(settings)
    stored = json.loads(txn.get(b"layout", db=meta) or "null")
    if stored is not None:
        known = stored["topics"]
        if layout["topics"][: len(known)] == known:  # topics may be added at the end
            stored["topics"] = layout["topics"]
        changed = {key: (stored.get(key), layout[key]) for key in layout if stored.get(key) != layout[key]}
        if changed:
            raise StoreError(
                f"state in {path} was created with other settings (stored, wanted): {changed}; "
                "put the old values back, or start with an empty data_dir and replay the topic"
            )
    txn.put(b"layout", json.dumps(layout).encode(), db=meta)


def shard_path(state_dir: Path, shard: int) -> Path:
    """Folder of one logical shard's LMDB environment."""
    return state_dir / f"shard={shard:04d}"


def stored_positions(txn: Transaction, meta: Database) -> dict[int, Position]:
    """Applied position of each partition, as committed."""
    return {int(key[1:]): Position(*_POSITION.unpack(value)) for key, value in prefixed(txn, meta, b"p")}


def own(path: Path) -> int:
    """Take the lock of a shard; it is freed when the descriptor is closed or its process dies."""
    path.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path / "owner", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreError(
            f"{path} is hosted by process {holder or 'unknown'}; stop that one first, or wait until it is released"
        ) from None
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def hosted(path: Path) -> bool:
    """Whether a process on this machine hosts a shard."""
    try:
        descriptor = os.open(path / "owner", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def put_position(txn: Transaction, meta: Database, partition: int, position: Position) -> None:
    """Store the applied position of a partition."""
    txn.put(b"p%d" % partition, _POSITION.pack(*vars(position).values()), db=meta)


def prefixed(txn: Transaction, db: Database, prefix: bytes) -> Iterable[tuple[bytes, bytes]]:
    """All pairs of a database whose keys start with `prefix`, in order."""
    cursor = txn.cursor(db=db)
    if cursor.set_range(prefix):
        for key, value in cursor:
            if not key.startswith(prefix):
                return
            yield key, value
