"""The state and the windows on disk against the truth: what is lost, what is doubled, what differs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from services.settings import Settings
from streaming.rows import Rows
from streaming.state import open_store
from streaming.windows import complete_windows
from tests.faults.log import Logged
from tests.faults.truth import Truth, WindowRow
from tests.streaming.oracle import check_row

_SHOWN = 5  # differences told per kind

Target = tuple[int, int, int, int]
"""An event of a window: user, time, item, type."""


@dataclass
class Verdict:
    """How the run ended; `ok` is the proof."""

    lost: int = 0  # events that state, windows or dead letters lack
    doubled: int = 0  # events that stand there more often than they should
    users: int = 0
    rows_wrong: int = 0
    windows: int = 0
    windows_wrong: int = 0
    totals_wrong: dict[str, tuple[int, int]] = field(default_factory=dict)  # name: (expected, found)
    dead_letters_repeated: int = 0  # letters sent once more after a rewind: those are at least once
    differences: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Nothing lost, nothing doubled, and every row, count and window as it must be."""
        return not (self.lost or self.doubled or self.rows_wrong or self.windows_wrong or self.totals_wrong)

    def tell(self, kind: str, text: str) -> None:
        """Note a difference, unless there are enough of its kind."""
        if sum(known.startswith(kind) for known in self.differences) < _SHOWN:
            self.differences.append(f"{kind}: {text}")


def compare(settings: Settings, truth: Truth, letters: Mapping[int, Sequence[Logged]]) -> Verdict:
    """Judge what a stopped pipeline left on disk.

    Args:
        letters: the log of the dead-letter topic.
    """
    verdict = Verdict()
    streaming, data_dir = settings.streaming, settings.data_dir
    rows: dict[int, Any] = {}
    totals: Counter[str] = Counter()
    for shard in range(streaming.logical_shards):
        with open_store(data_dir / "state", data_dir / "windows", shard, streaming) as store:
            rows |= {int(row["user"]): row for row in store.rows()}
            stats = store.stats()
            totals.update({total: getattr(stats, total) for total in truth.totals})
    _compare_rows(verdict, rows, truth, settings)
    for total, expected in truth.totals.items():
        if totals[total] != expected:
            verdict.totals_wrong[total] = (expected, totals[total])
            verdict.tell("count", f"{total}: {expected:,} expected, {totals[total]:,} found")
    _compare_windows(verdict, settings, truth)
    _compare_letters(verdict, truth, letters)
    return verdict


def _compare_rows(verdict: Verdict, rows: dict[int, Any], truth: Truth, settings: Settings) -> None:
    expected = {user: row for user, row in truth.users.items() if row.counted}
    verdict.users = len(expected)
    for user in expected.keys() | rows.keys():
        should = len(expected[user].counted) if user in expected else 0
        found = int(rows[user]["total"]) if user in rows else 0
        verdict.lost += max(0, should - found)
        verdict.doubled += max(0, found - should)
        if user not in expected or user not in rows:
            verdict.rows_wrong += 1
            verdict.tell("row", f"user {user}: {should} events expected, {found} found")
            continue
        try:
            check_row(rows[user], expected[user], settings.streaming)
            _check_provenance(rows[user], truth, user)
        except AssertionError as error:
            verdict.rows_wrong += 1
            verdict.tell("row", f"user {user}: {should} events expected, {found} found; {str(error)[:400]}")


def _check_provenance(row: Rows, truth: Truth, user: int) -> None:
    last = truth.last[user]
    for column in ("partition", "offset", "ingested_ms", "window"):
        assert row[column] == getattr(last, column), f"{column} is {row[column]}, not {getattr(last, column)}"
    assert row["trust"] == np.float32(1)


def _compare_windows(verdict: Verdict, settings: Settings, truth: Truth) -> None:
    streaming = settings.streaming
    length_ms, lateness_ms = (
        int(s * 1000) for s in (streaming.windows.length_s, streaming.windows.lateness_s)
    )
    expected = truth.closed(length_ms, lateness_ms)
    folders = {
        window.start_ms: window.path
        for window in complete_windows(settings.data_dir / "windows", streaming.logical_shards)
    }
    started = len(list((settings.data_dir / "windows").glob("start=*")))
    verdict.windows = len(expected)
    if started != len(folders):
        verdict.windows_wrong += started - len(folders)
        verdict.tell("window", f"{started - len(folders)} windows are not complete")
    for start in sorted(expected.keys() | folders.keys()):
        found = _read_window(folders[start], streaming.logical_shards) if start in folders else {}
        wanted = expected.get(start, {})
        missing, extra = _difference(_targets(wanted), _targets(found))
        verdict.lost += missing
        verdict.doubled += extra
        if found != wanted or (start in folders) != (start in expected):
            verdict.windows_wrong += 1
            users = [u for u in found.keys() | wanted.keys() if found.get(u) != wanted.get(u)]
            known = "" if start in expected else ", which should not be closed"
            verdict.tell(
                "window", f"{start}{known}: {missing} missing, {extra} extra, {len(users)} users differ"
            )


def _read_window(folder: Path, num_shards: int) -> dict[int, WindowRow]:
    rows: dict[int, WindowRow] = {}
    for shard in range(num_shards):
        table = pq.read_table(folder / f"shard={shard:04d}.parquet", partitioning=None)
        for row in table.to_pylist():
            assert row["user"] not in rows, f"user {row['user']} stands in two files of {folder}"
            assert row["user"] % num_shards == shard, (
                f"user {row['user']} stands in the file of shard {shard}"
            )
            sequence = list(zip(row["times"], row["items"], row["types"], strict=True))
            rows[row["user"]] = (sequence, row["target_from"])
    return rows


def _targets(window: Mapping[int, WindowRow]) -> Counter[Target]:
    """Events that are new in a window; what stands before them is context."""
    return Counter((user, *event) for user, (events, start) in window.items() for event in events[start:])


def _difference(expected: Counter[Target], found: Counter[Target]) -> tuple[int, int]:
    return (expected - found).total(), (found - expected).total()


def _compare_letters(verdict: Verdict, truth: Truth, letters: Mapping[int, Sequence[Logged]]) -> None:
    found: Counter[tuple[int, int]] = Counter()
    for record in (record for records in letters.values() for record in records):
        headers = dict(record.headers)
        found[int(headers["headrace.partition"]), int(headers["headrace.offset"])] += 1
    missing, extra = truth.dead - found.keys(), found.keys() - truth.dead
    verdict.lost += len(missing)
    verdict.doubled += len(extra)
    verdict.dead_letters_repeated = sum(found.values()) - len(found)
    for place in sorted(missing)[:_SHOWN]:
        verdict.tell("dead letter", f"partition {place[0]}, offset {place[1]} is missing")
    for place in sorted(extra)[:_SHOWN]:
        verdict.tell("dead letter", f"partition {place[0]}, offset {place[1]} is a valid record")
