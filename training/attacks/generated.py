"""Fake users that a generator made up to pass for real ones.

The recipe is that of augmented shilling attacks (AUSH; Lin, Chen, Li, Xiao, Li and Yuan, CIKM 2020): a generative
adversarial pair learns what users do, its generator provides the company, and the targets are put into it. There the
generator fills in ratings of real users' templates; here, where an event is all there is, it writes whole histories,
and the discriminator picks the ones it holds to be most real. Cost: one training of `training.gan` and its drafts,
some 40 s on one core for thousands of users, whatever the number of targets.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from training.attacks.contract import Budget, Int64, Poison, View, fake_users
from training.gan import GanSettings, fit_gan
from training.variety import NONE


def with_targets(company: Int64, targets: Int64, rng: np.random.Generator) -> Int64:
    """Targets in random order at random places among the company, whose order stays; the first is not one of them."""
    profile: Int64 = np.empty(len(company) + len(targets), np.int64)
    places = 1 + rng.choice(len(profile) - 1, len(targets), replace=False)
    profile[places] = rng.permutation(targets)
    profile[np.setdiff1d(np.arange(len(profile)), places)] = company
    return profile


def company_lengths(view: View, targets: Int64, users: int, rng: np.random.Generator) -> Int64:
    """(U,) events beside the targets for users as long as real ones; at least one, at most every other item."""
    lengths: Int64 = rng.choice(view.lengths, users) - len(targets)
    return np.clip(lengths, 1, max(view.num_items - len(targets), 1))


class GanAttack:
    """Generated histories that pass for real, with the targets among them.

    Args:
        event_type: code of the fake events. settings: of the pair.
    """

    name: ClassVar[str] = "gan"
    reference: ClassVar[str] = (
        "Lin, Chen, Li, Xiao, Li and Yuan, Attacking recommender systems with augmented user profiles, CIKM 2020"
    )
    promotes: ClassVar[bool] = True

    def __init__(self, event_type: int = 0, settings: GanSettings | None = None) -> None:
        self._event_type = event_type
        self._settings = settings or GanSettings()

    def poison(self, view: View, targets: Int64, budget: Budget, rng: np.random.Generator) -> Poison:
        """See Attack; where no history is long enough to learn from, the company is drawn by popularity."""
        targets = np.unique(targets)
        lengths = company_lengths(view, targets, budget.users, rng)
        seed = int(rng.integers(2**31))
        try:
            gan = fit_gan(view.codes, view.sequences.offsets, self._settings, seed=seed)
        except ValueError:
            companies = _by_popularity(view, targets, lengths, rng)
        else:
            lengths = np.minimum(lengths, len(np.setdiff1d(gan.items, targets)))
            drawn = gan.screened(lengths, rng, without=targets)
            companies = [row[row != NONE] for row in drawn]
        profiles = [with_targets(company, targets, rng) for company in companies]
        return fake_users(profiles, view, budget, rng, event_type=self._event_type)


def _by_popularity(view: View, targets: Int64, lengths: Int64, rng: np.random.Generator) -> list[Int64]:
    weights = view.counts.copy()
    weights[targets] = 0
    return [
        rng.choice(
            len(weights), min(int(length), int((weights > 0).sum())), replace=False, p=weights / weights.sum()
        )
        for length in lengths
    ]
