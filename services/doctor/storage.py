"""The data directory: can it be written, does LMDB work there, is there room, and who has it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import lmdb
import psutil

from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings
from streaming.layout import hosted, shard_path

_GIB = 2**30
_FREE_MIN, _FREE_WANTED = 1 * _GIB, 10 * _GIB
_FREE_SHARE = 0.1  # of the file system: most fill up faster than people look
_INODES_MIN = 10_000  # a window has a file per shard
_REMOTE = ("nfs", "cifs", "smb", "9p", "afs", "ceph", "gluster", "lustre", "beegfs", "virtiofs", "fuse.sshfs")
_READ = "import lmdb, sys; e = lmdb.open(sys.argv[1], readonly=True); print(e.begin().get(b'k').decode())"
_READ_TIMEOUT_S = 10.0


def check_data_dir(settings: Settings) -> Iterator[Finding]:
    """Writing, LMDB across processes, free space and inodes, the kind of file system."""
    folder = _existing(settings.data_dir.resolve())
    try:
        with tempfile.TemporaryDirectory(prefix=".headrace-doctor-", dir=folder) as made:
            yield ok("data_dir", f"{settings.data_dir.resolve()} can be written")
            yield _lmdb(Path(made), settings.streaming.map_size_gib)
    except OSError as refused:
        yield error(
            "data_dir",
            f"{folder} cannot be written: {refused.strerror or refused}",
            f"make it writable for user {os.getuid()} (in a pod: fsGroup), or set data_dir to another folder",
        )
    yield _file_system(folder)
    yield from _room(folder)


def check_holders(settings: Settings) -> Iterator[Finding]:
    """Who hosts the logical shards now."""
    state = settings.data_dir.resolve() / "state"
    held = [n for n in range(settings.streaming.logical_shards) if hosted(shard_path(state, n))]
    if not held:
        yield ok("holders", "nobody hosts the state now")
        return
    names = sorted({_holder(shard_path(state, shard)) for shard in held})
    seen = (
        f"{len(held)} of {settings.streaming.logical_shards} logical shards are hosted by {', '.join(names)}"
    )
    if all("ray" in name.lower() for name in names):
        yield ok("holders", f"{seen}: Headrace runs here")
    else:
        yield warning(
            "holders", seen, "end that process before `headrace up`, which could not open the state"
        )


def _holder(shard: Path) -> str:
    """Who wrote his process id into the file that he locks."""
    pid = (shard / "owner").read_text(errors="replace").strip()
    try:
        return f"{psutil.Process(int(pid)).name()} (process {pid})"
    except (ValueError, psutil.Error):
        return "a process that this one cannot see"


def _existing(folder: Path) -> Path:
    """The folder, or what is there of the way to it."""
    return next(path for path in (folder, *folder.parents) if path.is_dir())


def _lmdb(folder: Path, map_size_gib: float) -> Finding:
    """Whether another process reads what this one wrote, with as much address space as the settings reserve."""
    try:
        with lmdb.open(str(folder), map_size=int(map_size_gib * _GIB)) as env:
            with env.begin(write=True) as txn:
                txn.put(b"k", b"seen")
            read = subprocess.run(
                [sys.executable, "-c", _READ, str(folder)],
                capture_output=True,
                text=True,
                timeout=_READ_TIMEOUT_S,
                check=False,
            )
    except lmdb.Error as refused:
        return error(
            "lmdb",
            str(refused),
            "put data_dir on a local disk; lower streaming.map_size_gib if it says memory",
        )
    if read.stdout.strip() != "seen":
        return error(
            "lmdb", f"another process cannot read what is written: {read.stderr[-200:]}", "take a local disk"
        )
    return ok("lmdb", "one process writes, another reads")


def _file_system(folder: Path) -> Finding:
    kind, place = file_system(folder)
    seen = f"{kind} at {place}"
    if kind.startswith(_REMOTE):
        return error(
            "file system",
            seen,
            "put data_dir on a local disk or a block device: LMDB's locks and maps do not hold over a network",
        )
    if kind in ("overlay", "overlayfs"):
        return warning("file system", seen, "mount a volume: this one goes with the container")
    if kind in ("tmpfs", "ramfs"):
        return warning("file system", seen, "take a disk: this is memory, and gone after a restart")
    return ok("file system", seen)


def file_system(folder: Path) -> tuple[str, str]:
    """Kind and mount point of what a folder lies on."""
    on = [
        part
        for part in psutil.disk_partitions(all=True)
        if folder.is_relative_to(part.mountpoint) and part.fstype
    ]
    if not on:
        return "unknown", str(folder)
    last = max(on, key=lambda part: len(part.mountpoint))
    return last.fstype, last.mountpoint


def _room(folder: Path) -> Iterator[Finding]:
    stat = os.statvfs(folder)
    free, total = stat.f_bavail * stat.f_frsize, stat.f_blocks * stat.f_frsize
    seen = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free"
    if free < _FREE_MIN:
        yield error("disk", seen, "make room: nothing can be applied, learned or kept on a full disk")
    elif free < min(_FREE_WANTED, _FREE_SHARE * total):
        yield warning("disk", seen, "make room, or enlarge it; `headrace size` tells what a load needs")
    else:
        yield ok("disk", seen)
    if stat.f_files and stat.f_favail < _INODES_MIN:
        yield error(
            "inodes", f"{stat.f_favail:,} are free", "delete small files: every window is one per shard"
        )
