"""State from snapshots: fill the folders of shards that have none, and tables of what was or could be taken."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from rich.table import Table
from rich.text import Text

from services.plain_text import printable
from services.settings import Settings
from streaming.backup.manifest import SnapshotInfo
from streaming.backup.snapshots import SnapshotStore
from streaming.errors import SnapshotError
from streaming.layout import own, shard_path, store_layout

_PARTITIONS_SHOWN = 4


@dataclass(frozen=True)
class Restored:
    """What became of one shard."""

    shard: int
    info: SnapshotInfo | None  # None: there is no snapshot of it
    seconds: float | None = None  # None: nothing was written


class Restore:
    """Restores the state of a data directory.

    Args:
        settings: `data_dir`, and the streaming settings that its state depends on.
        store: where the snapshots are.
        before: take none newer than this (with a time zone); None: the newest.
    """

    def __init__(self, settings: Settings, store: SnapshotStore, before: datetime | None = None) -> None:
        self._state_dir = settings.data_dir / "state"
        self._streaming = settings.streaming
        self._store, self._before = store, before

    def run(self, shards: Sequence[int] = (), *, dry_run: bool = False) -> list[Restored]:
        """Restore these shards, or all of them; a shard without snapshots is left empty.

        All that could be refused is checked before the first byte is written.

        Raises:
            SnapshotError: a shard has state or there is no such shard, the snapshots were taken with other
                settings, or the store cannot be read.
            StoreError: a running process hosts a shard.
        """
        chosen = sorted(set(shards)) or range(self._streaming.logical_shards)
        self._check_numbers(chosen)
        for shard in chosen:
            self._check_empty(shard)
        planned = [Restored(shard, self._newest(shard)) for shard in chosen]
        self._check_layout(planned)
        return planned if dry_run else [self._restore(plan) for plan in planned]

    def _restore(self, plan: Restored) -> Restored:
        if plan.info is None:
            return plan
        started = time.perf_counter()
        folder = shard_path(self._state_dir, plan.shard)
        with _owned(folder):
            info = self._store.restore(plan.shard, folder, self._before)
        return Restored(plan.shard, info, time.perf_counter() - started)

    def _newest(self, shard: int) -> SnapshotInfo | None:
        return next(
            (
                info
                for info in self._store.list(shard)
                if self._before is None or info.taken_at <= self._before
            ),
            None,
        )

    def _check_numbers(self, shards: Iterable[int]) -> None:
        count = self._streaming.logical_shards
        unknown = [shard for shard in shards if not 0 <= shard < count]
        if unknown:
            raise SnapshotError(f"expected shards from 0 to {count - 1}, got {unknown}")

    def _check_empty(self, shard: int) -> None:
        folder = shard_path(self._state_dir, shard)
        if (folder / "owner").exists():
            with _owned(folder):
                pass
        if (folder / "data.mdb").exists():
            raise SnapshotError(
                f"{folder} holds state already, and nothing was restored; move {self._state_dir} away, "
                "or name shards without state (--shard)"
            )

    def _check_layout(self, planned: Iterable[Restored]) -> None:
        wanted = json.loads(json.dumps(store_layout(self._streaming)))
        for shard, info in ((plan.shard, plan.info) for plan in planned):
            if info is not None and info.layout != wanted:
                changed = {
                    name: (info.layout.get(name), wanted.get(name))
                    for name in info.layout.keys() | wanted.keys()
                    if info.layout.get(name) != wanted.get(name)
                }
                raise SnapshotError(
                    f"the snapshot of shard {shard} from {info.name} was taken with other settings "
                    f"(snapshot, here): {changed}; put those values into the settings, and nothing was restored"
                )


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Hold a shard, so that no process hosts it meanwhile."""
    descriptor = own(folder)
    try:
        yield
    finally:
        os.close(descriptor)


def snapshots_of(store: SnapshotStore, shards: Sequence[int] = ()) -> list[SnapshotInfo]:
    """All complete snapshots, by shard, newest first.

    Raises:
        SnapshotError: the store cannot be read.
    """
    return [info for shard in sorted(set(shards)) or store.shards() for info in store.list(shard)]


def restored_table(results: Iterable[Restored], now: datetime | None = None) -> Table:
    """What was restored, a line per shard."""
    table = _table("seconds")
    for result in results:
        seconds = "–" if result.seconds is None else f"{result.seconds:.1f}"
        if result.info is None:
            table.add_row(str(result.shard), Text("no snapshot: starts empty", style="yellow"))
        else:
            table.add_row(*_cells(result.info, now), seconds)
    return table


def snapshots_table(infos: Iterable[SnapshotInfo], now: datetime | None = None) -> Table:
    """What is in the store, a line per snapshot; seconds are those that taking it took."""
    table = _table("took s")
    for info in infos:
        table.add_row(*_cells(info, now), f"{info.copy_s + info.upload_s:.1f}")
    return table


def _table(last: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("shard", "taken (UTC)", "age", "stored", "state", "offsets applied", last):
        numeric = name in ("shard", "age", "stored", "state", last)
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name != "offsets applied")
    return table


def _cells(info: SnapshotInfo, now: datetime | None) -> tuple[str | Text, ...]:
    return (
        str(info.shard),
        info.taken_at.strftime("%Y-%m-%d %H:%M:%S"),
        _age((now or datetime.now(UTC)) - info.taken_at),
        _size(info.bytes),
        _size(info.raw_bytes),
        Text(_offsets(info.positions)),
    )


def _age(age: timedelta) -> str:
    seconds = max(0, round(age.total_seconds()))
    for size, unit, of in ((86400, "d", 10), (3600, "h", 10), (60, "min", 1)):
        if seconds >= size:
            return f"{seconds * of // size / of:g} {unit}"
    return f"{seconds} s"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"


def _offsets(positions: dict[str, int]) -> str:
    named = [f"{printable(name)} {offset:,}" for name, offset in positions.items()]
    more = len(named) - _PARTITIONS_SHOWN
    return ", ".join(named[:_PARTITIONS_SHOWN]) + (f" and {more} more" if more > 0 else "")
