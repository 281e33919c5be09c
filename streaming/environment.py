"""Opens LMDB environments, once per process.

LMDB forbids a process to open an environment twice (its file locks would break), but a writer and a reader may
well live in one process: tests, and the catalogue actor. So opened environments are shared by path and counted.
"""

import threading
from pathlib import Path
from typing import TYPE_CHECKING

import lmdb

from streaming.errors import StoreError

if TYPE_CHECKING:
    from lmdb import _Database as Database

MAX_READERS = 512
_MAX_DATABASES = 8  # named ones in an environment; the catalogue has five
# What a reader maps: address space only. LMDB's default is 10 MiB, at which a store that grew past it can no longer
# be read; and a writer's own size is in the file only after its first commit.
_READER_MAP_BYTES = 2**40

_lock = threading.Lock()
_opened: dict[str, tuple[lmdb.Environment, int]] = {}  # path: (environment, how often opened)


def open_writer(path: Path, map_size_gib: float, *, sync: bool = False) -> lmdb.Environment:
    """Open an environment for writing, made where absent.

    Args:
        path: its folder.
        map_size_gib: address space reserved; the file grows only as it is used.
        sync: flush data to the disk at every commit.

    Raises:
        StoreError: this process has it open for reading only.
    """
    path.mkdir(parents=True, exist_ok=True)
    with _lock:
        shared = _share(path)
        if shared is not None:
            if shared.flags()["readonly"]:
                raise StoreError(f"{path} is open for reading in this process; open the writer first")
            return shared
        env = lmdb.open(
            str(path),
            map_size=int(map_size_gib * 2**30),
            max_dbs=_MAX_DATABASES,
            sync=sync,
            metasync=False,
            max_readers=MAX_READERS,
        )
        env.reader_check()  # clears the slots of readers that were killed
        return _remember(path, env)


def open_reader(path: Path) -> lmdb.Environment | None:
    """Open an environment for reading; None where there is none yet (or its writer is still making it)."""
    with _lock:
        shared = _share(path)
        if shared is not None:
            return shared
        if not (path / "data.mdb").is_file():
            return None
        try:
            env = lmdb.open(
                str(path),
                map_size=_READER_MAP_BYTES,
                readonly=True,
                max_dbs=_MAX_DATABASES,
                max_readers=MAX_READERS,
                readahead=False,
            )
        except lmdb.Error:
            return None
        return _remember(path, env)


def open_databases(env: lmdb.Environment, *names: bytes) -> "tuple[Database, ...]":
    """Open existing named databases of an environment for reading.

    In an environment that this process also writes to, py-lmdb would begin a writing transaction for it, and wait
    for ever for one that another thread has begun; there a reading one does. In a read-only environment
    that would not, as handles opened in it end with it.

    Raises:
        lmdb.Error: one does not exist (yet).
    """
    if env.flags()["readonly"]:
        return tuple(env.open_db(name, create=False) for name in names)
    with env.begin() as txn:
        return tuple(env.open_db(name, txn, create=False) for name in names)


def close(env: lmdb.Environment) -> None:
    """Give an environment back; it closes with its last user."""
    with _lock:
        path = env.path()
        _, users = _opened[path]
        if users > 1:
            _opened[path] = env, users - 1
        else:
            del _opened[path]
            env.close()


def _share(path: Path) -> lmdb.Environment | None:
    if str(path) not in _opened:
        return None
    env, users = _opened[str(path)]
    _opened[str(path)] = env, users + 1
    return env


def _remember(path: Path, env: lmdb.Environment) -> lmdb.Environment:
    _opened[str(path)] = env, 1
    return env
