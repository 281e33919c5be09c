"""Rank 0's look-out: which windows are complete, whether the catalogue is ready, what to do next."""

from __future__ import annotations

import time
from pathlib import Path

from streaming.catalog import CatalogReader, CatalogSnapshot
from streaming.config import StreamingSettings
from streaming.windows import WindowFiles, complete_windows
from training.config import TrainingSettings
from training.gate import scorable
from training.plan import Plan, WindowCounts, split
from training.progress import Progress
from training.registry import Registry
from training.status import StatusWriter
from training.warden import Warden, trusted_window


class Scout:
    """Looks, counts each window once, and says what the next round is."""

    def __init__(
        self,
        data_dir: Path,
        streaming: StreamingSettings,
        settings: TrainingSettings,
        progress: Progress,
        registry: Registry,
        status: StatusWriter,
    ) -> None:
        self._windows_dir = data_dir / "windows"
        self._streaming, self._settings = streaming, settings
        self._progress, self._registry, self._status = progress, registry, status
        self._reader = CatalogReader(data_dir / "catalog")
        self._warden = Warden(data_dir, settings, progress, status)
        self._data_dir = data_dir
        self._counts: dict[int, WindowCounts] = {}
        self._windows: dict[int, WindowFiles] = {}
        self._windows_ready_at: float | None = None
        self.catalog: CatalogSnapshot = self._reader.snapshot()

    def look(self) -> Plan | None:
        """The next round, or None with the reason in the status; a call costs one listing of the windows."""
        windows = complete_windows(self._windows_dir, self._streaming.logical_shards)
        self._warden.watch(windows)
        self._windows = {window.start_ms: window for window in windows}
        fresh = self._progress.number == 0
        if fresh and not self._enough_to_begin(windows):
            return None
        starts = [window.start_ms for window in windows]
        trained = set(self._progress.trained)
        divided = split(starts, trained, self.count, self._settings.gate.min_targets)
        if divided is None:
            self._say("waiting for a new window", 0.0)
            return None
        if fresh and not self._catalog_ready():
            return None
        self.read_catalog()
        newest = self._settings.replay_windows
        replay = [start for start in starts if start in trained][-newest:] if newest else []
        first = self._registry.current() is None
        return Plan(self._progress.next_version, *divided, replay=tuple(replay), first=first)

    def count(self, start_ms: int) -> WindowCounts:
        """What may be learned of the window starting at ``start_ms`` (read once)."""
        if start_ms not in self._counts:
            sequences = trusted_window(self._data_dir, self._windows[start_ms])
            self._counts[start_ms] = WindowCounts(
                events=int(sequences.new_events().sum()),
                targets=int(sequences.targets().sum()),
                scorable=int(scorable(sequences, self._settings.gate.unseen_only).sum()),
            )
        return self._counts[start_ms]

    def found_empty(self, start_ms: int) -> bool:
        """Whether this scout has seen that nothing may be learned of the window."""
        known = self._counts.get(start_ms)
        return known is not None and not known.targets

    def read_catalog(self) -> CatalogSnapshot:
        """The catalogue as it stands; read again only if it changed."""
        if self.catalog.version != self._reader.version():
            self.catalog = self._reader.snapshot()
        return self.catalog

    def _enough_to_begin(self, windows: list[WindowFiles]) -> bool:
        needed, wanted = self._settings.min_initial_windows, self._settings.initial_events
        events = sum(self.count(window.start_ms).events for window in windows) if wanted else 0
        share = min(len(windows) / needed, events / wanted if wanted else 1.0, 1.0)
        detail = f"{len(windows)} of {needed} windows"
        self._say(f"{detail}, {events:,} of {wanted:,} events" if wanted else detail, share)
        return share >= 1.0

    def _catalog_ready(self) -> bool:
        now = time.monotonic()
        self._windows_ready_at = self._windows_ready_at or now
        catalog = self.read_catalog()
        done, total = int(catalog.encoded.sum()), len(catalog)
        if total and done == total:
            return True
        self._say(f"text vectors: {done:,} of {total:,} items", done / max(total, 1))
        return now - self._windows_ready_at > self._settings.catalog_timeout_s

    def _say(self, detail: str, progress: float) -> None:
        self._status.update(phase="waiting", detail=detail, progress=progress, eta_s=None)
