"""Rank 0's watch at the door: windows that became complete are screened before anybody learns from them.

The detector learns from windows that were trained on already, with simulated attacks added, and again every so many
windows, as the honest crowd changes. The windows of the first model cannot be screened: there is nothing to compare
them with, and they are taken as they are. Verdicts go into one file per window (`streaming.trust`), where
people, the state rows and the learner find them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from streaming.trust import read_decisions, screened_windows, weights, write_trust
from streaming.windows import WindowFiles, read_window
from training import telemetry
from training.config import TrainingSettings
from training.data import Sequences, from_window
from training.progress import PopularityCounts, Progress
from training.status import StatusWriter
from training.trust.detector import Detector
from training.trust.screening import screen
from training.trust.simulation import fitted_detector

log = logging.getLogger("headrace.training")
_LEAST_USERS = 200  # in the windows to learn from; fewer say nothing about what one in 500 does


class Warden:
    """Screens windows; asked by the scout whenever it has listed them."""

    def __init__(
        self, data_dir: Path, settings: TrainingSettings, progress: Progress, status: StatusWriter
    ) -> None:
        self._data_dir, self._settings = data_dir, settings
        self._progress, self._status = progress, status
        self._file = data_dir / "learner" / "detector.safetensors"
        self._detector: Detector | None = None
        self._told = ""
        if settings.trust.enabled and self._file.is_file():
            self._take(Detector.load(self._file))

    def watch(self, windows: Sequence[WindowFiles]) -> None:
        """Screen those of the complete windows that are neither screened nor trained on yet, oldest first."""
        if not self._settings.trust.enabled:
            return
        screened = set(screened_windows(self._data_dir))
        trained = self._progress.trained
        waiting = [w for w in windows if w.start_ms not in trained and w.start_ms not in screened]
        if not waiting:
            return
        self._refresh([w for w in windows if w.start_ms in trained])
        if self._detector is None:
            return
        past = self._progress.popularity.copy()
        for window in windows:  # what was screened but waits to be trained is past, too
            if window.start_ms not in trained and window.start_ms in screened:
                _count(past, self._trusted(window))
        for window in waiting:
            self._screen(window, past, self._detector)
            _count(past, self._trusted(window))

    def _screen(self, window: WindowFiles, past: PopularityCounts, detector: Detector) -> None:
        sequences = from_window(read_window(window.path))
        found = screen(sequences, past, detector)
        held = found.quarantined
        write_trust(
            self._data_dir,
            window.start_ms,
            sequences.users[found.doubted],
            found.trust[found.doubted],
            held[found.doubted],
            found.reasons,
            detector=self._told,
        )
        for verdict, users in (
            ("trusted", len(sequences) - len(found.doubted)),
            ("doubted", len(found.doubted) - int(held.sum())),
            ("quarantined", int(held.sum())),
        ):
            telemetry.SCREENED.labels(verdict).inc(users)
        telemetry.QUARANTINED.set(int(held.sum()))
        if held.any():
            log.warning(
                "window %s: %d of %d users are held in quarantine", window.name, held.sum(), len(sequences)
            )
        self._status.update(
            trust={
                "window": window.name,
                "users": len(sequences),
                "doubted": len(found.doubted),
                "quarantined": int(held.sum()),
            }
        )

    def _refresh(self, trained: Sequence[WindowFiles]) -> None:
        """Let the detector learn where there is none, or where many windows came since it did."""
        config = self._settings.trust
        if self._detector is not None and len(trained) - self._detector.windows < config.refit_windows:
            return
        chosen = [self._trusted(window) for window in trained[-config.windows :]]
        if sum(map(len, chosen)) < _LEAST_USERS:
            return
        self._status.update(phase="loading", detail="the detector of fake users learns")
        past = PopularityCounts(self._settings.popularity_half_life_h * 3.6e6)
        for window in trained[: -config.windows][-config.windows :]:
            _count(past, self._trusted(window))
        made = fitted_detector(chosen, past, config, seed=self._settings.seed)
        if made is None:
            return
        made.windows = len(trained)
        made.save(self._file)
        self._take(made)
        log.info("the detector of fake users learned from %d windows", len(chosen))

    def _take(self, detector: Detector) -> None:
        self._detector = detector
        self._told = hashlib.sha256(self._file.read_bytes()).hexdigest()[:12]

    def _trusted(self, window: WindowFiles) -> Sequences:
        return trusted_window(self._data_dir, window)


def worth(data_dir: Path, window: WindowFiles) -> NDArray[np.float32]:
    """(R,) what each row of a window counts, after screening and people's decisions."""
    table = read_window(window.path, columns=["user", "trust"])
    carried = table["trust"].to_numpy().astype(np.float32)
    return weights(data_dir, window.start_ms, table["user"].to_numpy(), carried, read_decisions(data_dir))


def trusted_window(
    data_dir: Path, window: WindowFiles, counts: NDArray[np.float32] | None = None
) -> Sequences:
    """A window as it may be learned from: rows with what they count, without those that count nothing.

    Args:
        counts: (R,) from `worth`, where all workers must agree on them; read here by default.
    """
    sequences = from_window(read_window(window.path))
    counts = worth(data_dir, window) if counts is None else counts
    return replace(sequences, trust=counts).take(np.flatnonzero(counts > 0))


def _count(past: PopularityCounts, sequences: Sequences) -> None:
    fresh = sequences.new_events()
    past.add(sequences.items[fresh], sequences.times[fresh])
