"""Files on their way to and from a store: compressed, checked by hash, made durable, in scratch folders."""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

_LEVEL = 1  # of -7 to 22: level 3 takes more than twice as long and makes a state file 9% smaller
_FORGOTTEN_AFTER_S = 3600.0  # no scratch folder in use is older


def pack(file: Path, packed: Path) -> None:
    """Compress a file with Zstandard; the interpreter lock is free meanwhile."""
    with file.open("rb") as source, packed.open("wb") as target:
        zstandard.ZstdCompressor(level=_LEVEL).copy_stream(source, target, size=file.stat().st_size)


def unpack(packed: Path, file: Path) -> None:
    """Reverse `pack`.

    Raises:
        zstandard.ZstdError: it is no such file, or ends early.
    """
    with packed.open("rb") as source, file.open("wb") as target:
        zstandard.ZstdDecompressor().copy_stream(source, target)


def sha256(file: Path) -> str:
    """Hash of a file's bytes, as hexadecimal digits."""
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()


def flush(path: Path) -> None:
    """Wait until a file's bytes, or a folder's names, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def scratch(parent: Path, name: str) -> Iterator[Path]:
    """A new folder in `parent`, removed at the end; also removes what crashes left under the same name."""
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.glob(f"{name}-*"):
        if time.time() - left.stat().st_mtime > _FORGOTTEN_AFTER_S:
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
