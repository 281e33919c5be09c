"""Snapshots of shards in any fsspec file system, and shards from snapshots.

    <url>/shard=0003/2026-11-22T09-31-05.123Z/data.mdb.zst     rows, buffers and offsets of one instant
                                              manifest.json    what is in it; its presence makes it a snapshot

The order in which things become visible:

1. The environment is copied (`compaction`: only what is live, so nothing of an erased user) and compressed beside
   the state, and its positions are read in the transaction that copies.
2. The data is uploaded, then the manifest under another name, then that is renamed. An interruption before the
   rename leaves a folder that is no snapshot; `prune` removes it after an hour.
3. `prune` deletes a manifest before its data.
4. `restore` downloads beside the state, checks size and hash, opens the copy once, flushes it, and gives it its name
   by a hard link, which never replaces a file: a shard has all of a snapshot or nothing.

A snapshot taken at T holds everything that was committed before T.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lmdb

from streaming.backup.compaction import copy_live
from streaming.backup.manifest import SnapshotInfo, labelled, time_of
from streaming.backup.packing import flush, pack, scratch, sha256, unpack
from streaming.backup.remote import Remote
from streaming.config import SnapshotSettings
from streaming.errors import SnapshotError
from streaming.layout import stored_positions

log = logging.getLogger(__name__)

_DATA, _MANIFEST = "data.mdb.zst", "manifest.json"
_LEFTOVER_AFTER = timedelta(hours=1)  # no upload or download takes longer


class SnapshotStore:
    """The snapshots of all shards; one at a time is saved or pruned per shard.

    Args:
        settings: url, options and how many to keep.

    Raises:
        SnapshotError: no url, or one that cannot be used.
    """

    def __init__(self, settings: SnapshotSettings) -> None:
        if settings.url is None:
            raise SnapshotError("snapshots are off; set streaming.snapshots.url, or name a URL")
        self._remote = Remote(settings.url, settings.options)
        self._keep = settings.keep
        self._newest: dict[int, datetime] = {}  # moment of the newest snapshot taken here, by shard

    @property
    def url(self) -> str:
        """Where the snapshots are."""
        return self._remote.url

    def save(self, env: lmdb.Environment, shard: int, layout: Mapping[str, Any]) -> SnapshotInfo:
        """Take a snapshot, while writers go on.

        Needs free disk beside the state for the copy, compressed and not; takes the calling thread.

        Args:
            env: the shard's environment.
            shard: its number.
            layout: settings that its state depends on; `topics` names the topics of its positions.

        Raises:
            SnapshotError: it could not be copied or stored; there is no new snapshot.
        """
        remote = self._remote
        with (
            remote.reaching(f"save a snapshot of shard {shard}"),
            scratch(Path(env.path()).parent, f".snapshot={shard:04d}") as folder,
        ):
            taken_at, started = self._moment(shard), time.perf_counter()
            positions = copy_live(env, folder)
            data, packed = folder / "data.mdb", folder / _DATA
            pack(data, packed)
            copied = time.perf_counter()
            info = SnapshotInfo(
                shard=shard,
                taken_at=taken_at,
                positions=labelled(positions, layout),
                bytes=packed.stat().st_size,
                raw_bytes=data.stat().st_size,
                sha256=sha256(packed),
                copy_s=round(copied - started, 3),
                upload_s=0.0,
                layout=dict(layout),
            )
            remote.make_folder(self._path(info))
            uploading = time.perf_counter()
            remote.fs.put_file(str(packed), self._path(info, _DATA))
            info = replace(info, upload_s=round(time.perf_counter() - uploading, 3))
            self._publish(info)
        return info

    def _moment(self, shard: int) -> datetime:
        """Now, or just after the newest taken here: a clock that was set back must not name two snapshots alike."""
        moment = _now()
        newest = self._newest.get(shard)
        if newest is not None and moment <= newest:
            moment = newest + timedelta(milliseconds=1)
        self._newest[shard] = moment
        return moment

    def _publish(self, info: SnapshotInfo) -> None:
        partial = self._path(info, _MANIFEST + ".partial")
        self._remote.fs.pipe_file(partial, info.to_json().encode())
        self._remote.fs.mv(partial, self._path(info, _MANIFEST))

    def shards(self) -> list[int]:
        """Numbers of the shards that have a folder here.

        Raises:
            SnapshotError: the store cannot be read.
        """
        with self._remote.reaching("list the shards"):
            names = self._remote.names(self._remote.root)
            numbers = (name.removeprefix("shard=") for name in names if name.startswith("shard="))
            return sorted(int(number) for number in numbers if number.isdecimal())

    def list(self, shard: int) -> list[SnapshotInfo]:
        """Complete snapshots of a shard, newest first.

        Raises:
            SnapshotError: the store cannot be read, or was written by a newer Headrace.
        """
        with self._remote.reaching(f"list the snapshots of shard {shard}"):
            infos = [self._info(shard, name) for name, _ in self._folders(shard)]
            return [info for info in infos if info is not None]

    def restore(self, shard: int, folder: Path, before: datetime | None = None) -> SnapshotInfo | None:
        """Fill a shard's folder from its newest snapshot; from an older one where that is damaged.

        Args:
            shard: its number.
            folder: where its environment belongs; made where absent.
            before: take none newer than this (with a time zone).

        Returns:
            What was restored; None where there is no snapshot.

        Raises:
            SnapshotError: the folder holds state, the store cannot be read, or all snapshots are damaged.
        """
        if (folder / "data.mdb").exists():
            raise SnapshotError(
                f"{folder} holds state already; move it away to restore a snapshot in its place"
            )
        infos = [info for info in self.list(shard) if before is None or info.taken_at <= before]
        for info in infos:
            try:
                with self._remote.reaching(f"restore shard {shard}"):
                    self._fetch(info, folder)
            except _DamagedError as error:
                log.warning("shard %d: snapshot %s is damaged: %s", shard, info.name, error)
            else:
                return info
        if infos:
            raise SnapshotError(
                f"{self.url}: none of the {len(infos)} snapshots of shard {shard} can be used (the log says why); "
                "remove them to let the shard start from the beginning of its topics"
            )
        return None

    def prune(self, shard: int) -> int:
        """Delete all but the newest complete snapshots, and what interrupted uploads left; returns how many.

        Raises:
            SnapshotError: the store cannot be read or written.
        """
        with self._remote.reaching(f"prune the snapshots of shard {shard}"):
            kept = deleted = 0
            for name, taken_at in self._folders(shard):
                complete = self._info(shard, name) is not None
                kept += complete
                if kept > self._keep if complete else _now() - taken_at > _LEFTOVER_AFTER:
                    self._delete(f"{self._shard_path(shard)}/{name}", complete)
                    deleted += 1
            return deleted

    def _delete(self, folder: str, complete: bool) -> None:
        if complete:
            self._remote.fs.rm_file(f"{folder}/{_MANIFEST}")
        self._remote.fs.rm(folder, recursive=True)

    def _fetch(self, info: SnapshotInfo, folder: Path) -> None:
        with scratch(folder.parent, f".restore={info.shard:04d}") as temporary:
            packed, data = temporary / _DATA, temporary / "data.mdb"
            try:
                self._remote.fs.get_file(self._path(info, _DATA), str(packed))
            except FileNotFoundError:
                raise _DamagedError("its data is missing") from None
            _check_stored(packed, info)
            unpack(packed, data)
            _check_opens(temporary, info)
            folder.mkdir(parents=True, exist_ok=True)
            flush(data)
            try:
                os.link(data, folder / "data.mdb")
            except FileExistsError:
                raise SnapshotError(
                    f"{folder} got state from elsewhere while it was being restored"
                ) from None
            flush(folder)

    def _shard_path(self, shard: int) -> str:
        return f"{self._remote.root}/shard={shard:04d}"

    def _path(self, info: SnapshotInfo, file: str = "") -> str:
        return f"{self._shard_path(info.shard)}/{info.name}/{file}".rstrip("/")

    def _folders(self, shard: int) -> Sequence[tuple[str, datetime]]:
        """Folders of snapshots, complete or not, newest first: name and time."""
        times = {name: time_of(name) for name in self._remote.names(self._shard_path(shard))}
        return [(name, time) for name, time in sorted(times.items(), reverse=True) if time is not None]

    def _info(self, shard: int, name: str) -> SnapshotInfo | None:
        """The manifest; None where there is none that can be read."""
        try:
            stored: bytes = self._remote.fs.cat_file(f"{self._shard_path(shard)}/{name}/{_MANIFEST}")
            return SnapshotInfo.from_json(stored.decode())
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            log.warning("shard %d: the manifest of snapshot %s is damaged: %s", shard, name, error)
            return None


class _DamagedError(SnapshotError):
    """A snapshot is not what its manifest says."""


def _check_stored(packed: Path, info: SnapshotInfo) -> None:
    size = packed.stat().st_size
    if size != info.bytes:
        raise _DamagedError(f"its data has {size:,} bytes, expected {info.bytes:,}")
    digest = sha256(packed)
    if digest != info.sha256:
        raise _DamagedError(f"its data has SHA-256 {digest}, expected {info.sha256}")


def _check_opens(folder: Path, info: SnapshotInfo) -> None:
    """That this LMDB can open it, and that it is where the manifest says."""
    try:
        with lmdb.open(str(folder), readonly=True, lock=False, max_dbs=1) as env, env.begin() as txn:
            known = txn.get(b"meta") is not None
            stored = stored_positions(txn, env.open_db(b"meta", txn, create=False)) if known else {}
    except lmdb.Error as error:
        raise _DamagedError(f"it cannot be opened: {error}") from error
    positions = labelled(stored, info.layout)
    if positions != info.positions:
        raise _DamagedError(f"it holds offsets {positions}, expected {info.positions}")


def _now() -> datetime:
    now = datetime.now(UTC)
    return now.replace(microsecond=now.microsecond // 1000 * 1000)
