"""Windows with simulated attacks in them: what the detector learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from training.attacks import ATTACKS, Budget, View
from training.config import TrustConfig
from training.data import Sequences, concat
from training.progress import PopularityCounts
from training.trust.detector import Detector, Example
from training.trust.features import Floats, behaviour

KINDS = ("random", "average", "bandwagon", "segment")  # cheap to make; others share their need for many hands
_SIZES = (0.005, 0.4)  # fake users as a share of a window's, drawn on a log scale
_MOST_TARGETS = 8
_HONEST_PER_WINDOW = 4000
_MIN_WINDOWS = 3


def view_of(windows: Sequence[Sequences]) -> View:
    """What an outsider saw in these windows: their new events by user, in time order; no categories."""
    whole = concat(windows)
    fresh = whole.new_events()
    rows = np.repeat(np.arange(len(whole)), np.diff(whole.offsets))[fresh]
    users, place = np.unique(whole.users[rows], return_inverse=True)
    order = np.lexsort((whole.times[fresh], place))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(users)))])
    items = whole.items[fresh][order]
    hashes, codes = np.unique(items, return_inverse=True)
    sequences = Sequences(
        items,
        whole.times[fresh][order],
        whole.types[fresh][order],
        offsets,
        np.ones(len(users), np.int64),
        np.ones(len(users), np.float32),
        users,
    )
    return View(sequences, codes, hashes, np.zeros((0, 2), np.int64))


def fitted_detector(
    windows: Sequence[Sequences],
    past: PopularityCounts,
    config: TrustConfig,
    *,
    kinds: Sequence[str] = KINDS,
    seed: int = 0,
) -> Detector | None:
    """A detector from trusted windows.

    Args:
        windows: trusted ones, oldest first. past: counts of items before the first of them.
        config: shares and sizes. kinds: attacks that are simulated. seed: of everything random.

    Returns:
        None where there are too few windows to learn from and to calibrate on.
    """
    if len(windows) < _MIN_WINDOWS:
        return None
    rng = np.random.default_rng(seed)
    examples: list[Example] = []
    honest: list[Floats] = []
    counts = past.copy()
    for place, window in enumerate(windows):
        if place:  # the first one is what attackers of the second know
            view = view_of(windows[:place])
            made = [
                _attacked(window, counts, view, kind, rng)
                for kind in kinds
                for _ in range(config.simulations)
            ]
            if place % 2:
                examples.extend(made)
            else:  # people among fakes look odder than people among themselves
                honest.append(behaviour(window, counts).features)
                honest.extend(one.features[~one.fake] for one in made)
        fresh = window.new_events()
        counts.add(window.items[fresh], window.times[fresh])
    return Detector.fit(examples, honest, config, seed)


def _attacked(
    window: Sequences, past: PopularityCounts, view: View, kind: str, rng: np.random.Generator
) -> Example:
    """A window with fake users for random targets in it; of the honest ones a sample."""
    low, high = np.log(_SIZES)
    size = float(np.exp(rng.uniform(low, high)))
    known = np.flatnonzero(view.counts > 0)
    rank = np.argsort(np.argsort(view.counts[known], kind="stable"))
    # Targets that need an attack are rarely popular: drawn from the tail more often than from the head.
    weights = (1.0 - rank / len(rank)) ** 2 + 0.05
    most = min(_MOST_TARGETS, max(len(known) // 4, 1))
    targets = rng.choice(known, int(rng.integers(1, most + 1)), replace=False, p=weights / weights.sum())
    fresh = window.new_events()
    times = window.times[fresh]
    budget = Budget(max(2, round(size * len(window))), int(times.min()), int(times.max()) + 1)
    fakes = ATTACKS[kind]().poison(view, targets, budget, rng).sequences
    # Some attackers keep accounts in store: being new must not be what gives fakes away.
    age = rng.random(len(fakes)) * (rng.random() < 0.5) / 2
    kept_back = (age * np.diff(fakes.offsets)).astype(np.int64)
    whole = concat([window, replace(fakes, target_from=kept_back)])
    fake = np.arange(len(whole)) >= len(window)
    features = behaviour(whole, past).features
    people = np.flatnonzero(~fake)
    if len(people) > _HONEST_PER_WINDOW:
        people = rng.choice(people, _HONEST_PER_WINDOW, replace=False)
    chosen: NDArray[np.int64] = np.concatenate([people, np.flatnonzero(fake)])
    return Example(features[chosen], fake[chosen])
