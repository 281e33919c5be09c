"""Generated histories beside the real ones of a window: adversarial data augmentation.

The generator of `training.gan` learns from what the window's users did, its discriminator keeps the most real of
several drafts, and those are learned from at a reduced weight. The literature is divided on whether this helps a
recommender; it is off by default, and docs/robustness.md says what it was worth here.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from training.attacks.contract import Budget, fake_users
from training.config import GanConfig
from training.data import Sequences, concat
from training.gan import GanSettings, fit_gan
from training.trust.simulation import view_of
from training.variety import NONE

_SHORTEST = 3  # events of a generated history


def augmented(window: Sequences, config: GanConfig, seed: int) -> Sequences:
    """The window and generated users, who count ``config.weight`` each; unchanged where it is off or empty.

    Args:
        window: R rows. config: how many, and what they count. seed: of the pair and of what it writes.
    """
    count = round(config.share * len(window))
    if not config.enabled or not count:
        return window
    view = view_of([window])
    settings = GanSettings()
    try:
        gan = fit_gan(view.codes, view.sequences.offsets, settings, seed=seed)
    except ValueError:  # no two histories to learn from
        return window
    rng = np.random.default_rng([seed, 2])
    most = min(settings.length, len(gan.items))
    lengths = np.clip(rng.choice(view.lengths, count), min(_SHORTEST, most), most)
    profiles = [row[row != NONE] for row in gan.screened(lengths, rng)]
    times = window.times[window.new_events()]
    budget = Budget(count, int(times.min()), int(times.max()) + 1)
    made = fake_users(profiles, view, budget, rng, event_type=int(np.bincount(window.types).argmax()))
    trust = np.full(count, config.weight, np.float32)
    return concat([window, replace(made.sequences, trust=trust)])
