"""What was popular lately, from the window files: the stand-in before the first model exists.

Each event weighs 2^(-age / half-life), its age taken from the start of the newest window, in event time, so
that a replayed past counts like the present. A window is read once and kept as sums per item; combining
them is a handful of vector additions.
"""

from pathlib import Path

import numpy as np
import pyarrow as pa

from serving.config import PopularitySettings
from serving.user_encoder import Floats
from streaming.hashing import UInt64
from streaming.windows import WindowFiles, complete_windows, read_window

_READS_PER_REFRESH = 4  # bounds the time one refresh may take; the rest follows at the next one


class WindowPopularity:
    """Counts the newest windows, a few per call.

    Args:
        windows_dir: where the window files are.
        num_shards: logical shards; a window with fewer files is not complete.
        settings: how many windows, and how fast they fade.
    """

    def __init__(self, windows_dir: Path, num_shards: int, settings: PopularitySettings) -> None:
        self._dir, self._num_shards, self._settings = windows_dir, num_shards, settings
        self._counted: dict[int, tuple[UInt64, np.ndarray]] = {}  # start ms → items, weights at its start

    def refresh(self) -> bool:
        """Read windows that are new; tell whether there were any."""
        newest = complete_windows(self._dir, self._num_shards)[-self._settings.windows :]
        fresh = [window for window in newest if window.start_ms not in self._counted][-_READS_PER_REFRESH:]
        for window in fresh:
            self._counted[window.start_ms] = self._count(window)
        wanted = {window.start_ms for window in newest}
        self._counted = {start: sums for start, sums in self._counted.items() if start in wanted}
        return bool(fresh)

    def shares(self) -> tuple[UInt64, Floats]:
        """Return item hashes (ascending) and their shares of all weight; empty before the first window."""
        if not self._counted:
            return np.empty(0, np.uint64), np.empty(0, np.float32)
        newest = max(self._counted)
        half_life_ms = self._settings.half_life_s * 1000
        hashes = np.concatenate([items for items, _ in self._counted.values()])
        weights = np.concatenate(
            [sums * np.exp2((start - newest) / half_life_ms) for start, (_, sums) in self._counted.items()]
        )
        items, inverse = np.unique(hashes, return_inverse=True)
        totals = np.bincount(inverse, weights, minlength=len(items))
        return items, (totals / max(totals.sum(), 1e-30)).astype(np.float32)

    def _count(self, window: WindowFiles) -> tuple[UInt64, np.ndarray]:
        items, times = new_events(read_window(window.path))
        weights = np.exp2((times - window.start_ms) / (self._settings.half_life_s * 1000))
        distinct, inverse = np.unique(items, return_inverse=True)
        return distinct, np.bincount(inverse, weights, minlength=len(distinct))


def new_events(table: pa.Table) -> tuple[UInt64, np.ndarray]:
    """Items and times (epoch ms) of the events that are new in a window, without the context before it."""
    if table.num_rows == 0:
        return np.empty(0, np.uint64), np.empty(0, np.int64)
    items = table["items"].combine_chunks()
    times = table["times"].combine_chunks()
    starts = items.offsets.to_numpy()
    first_new = np.repeat(starts[:-1] + table["target_from"].to_numpy(), np.diff(starts))
    new = np.arange(starts[0], starts[-1]) >= first_new
    return items.flatten().to_numpy()[new], times.flatten().to_numpy()[new]
