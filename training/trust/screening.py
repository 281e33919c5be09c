"""A window as it may be learned from: every user with the trust that his behaviour has earned."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from training.data import Sequences
from training.progress import PopularityCounts
from training.trust.detector import Detector, reasons
from training.trust.features import behaviour


@dataclass(frozen=True)
class Screen:
    """What the detector made of a window's R users: trust (R,) in [0, 1], score (R,), and why (of the doubted)."""

    trust: NDArray[np.float32]
    scores: NDArray[np.float64]
    doubted: NDArray[np.int64]
    reasons: list[str]

    @property
    def quarantined(self) -> NDArray[np.bool_]:
        """(R,) users who are not trusted at all."""
        return self.trust <= 0

    def applied(self, window: Sequences) -> Sequences:
        """The window without the quarantined users, the others with their trust (never more than they had)."""
        kept = np.flatnonzero(~self.quarantined)
        trusted = replace(window, trust=np.minimum(window.trust, self.trust))
        return trusted.take(kept)


def screen(window: Sequences, past: PopularityCounts, detector: Detector) -> Screen:
    """Score every user of a window.

    Args:
        window: R rows. past: counts of items before the window. detector: from `simulation.fitted_detector`.
    """
    seen = behaviour(window, past)
    trust = detector.trust(seen.features)
    doubted = np.flatnonzero(trust < 1)
    return Screen(trust, detector.scores(seen.features), doubted, reasons(seen, doubted))
