"""Shilling attacks, adapted to implicit feedback: fake profiles of chosen items, with or without the targets.

The names and the recipes are those of rating systems (Lam and Riedl 2004; Burke, Mobasher, Zabicki and Bhaumik 2005;
Mobasher, Burke, Bhaumik and Williams 2007). Where they give the target the highest rating, the fake user has an event
with it; where they give it the lowest, the event is missing, or the target stands in bad company.

A profile is *selected* items that all fake users share, *fillers* drawn for each, and the targets, in random
order but never first, since nothing predicts a first event. Its length is drawn from the lengths of real users.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from training.attacks.contract import Budget, Int64, Poison, View, fake_users

_SELECTED_SHARE = 0.5  # of the company that targets get, where an attack selects any
_POPULAR = 20  # most popular items that a bandwagon jumps on


_LAM = "Lam and Riedl, Shilling recommender systems for fun and profit, WWW 2004"
_BURKE = "Burke, Mobasher, Zabicki and Bhaumik, Identifying attack models for secure recommendation, 2005"
_MOBASHER = "Mobasher, Burke, Bhaumik and Williams, Toward trustworthy recommender systems, TOIT 2007"


def _or_popular(weights: NDArray[np.float64], targets: Int64, view: View) -> NDArray[np.float64]:
    """Weights (N,) without the targets; popularity where nothing is left."""
    weights[targets] = 0
    return weights if weights.any() else view.counts


class Shilling:
    """What the shilling attacks share; each says which items it selects and how it weighs fillers.

    Args:
        event_type: code of the fake events.
    """

    name: ClassVar[str]
    reference: ClassVar[str]
    promotes: ClassVar[bool] = True
    with_targets: ClassVar[bool] = True

    def __init__(self, event_type: int = 0) -> None:
        self._event_type = event_type

    def poison(self, view: View, targets: Int64, budget: Budget, rng: np.random.Generator) -> Poison:
        """See Attack."""
        targets = np.unique(targets)
        selected = np.setdiff1d(self._selected(view, targets), targets)
        weights = self._weights(view, targets).astype(np.float64)
        weights[targets] = 0
        weights[selected] = 0
        lengths = rng.choice(view.lengths, budget.users)
        profiles = [self._profile(targets, selected, weights, int(length), rng) for length in lengths]
        return fake_users(profiles, view, budget, rng, event_type=self._event_type)

    def _profile(
        self,
        targets: Int64,
        selected: Int64,
        weights: NDArray[np.float64],
        length: int,
        rng: np.random.Generator,
    ) -> Int64:
        wanted = targets if self.with_targets else targets[:0]
        others = max(length - len(wanted), 1)  # at least one event stands before the targets
        shared = min(len(selected), max(round(_SELECTED_SHARE * others), 1)) if len(selected) else 0
        fillers = min(others - shared, int((weights > 0).sum()))
        company = rng.choice(selected, shared, replace=False) if shared else targets[:0]
        if fillers:
            drawn = rng.choice(len(weights), fillers, replace=False, p=weights / weights.sum())
            company = np.concatenate([company, drawn])
        company = rng.permutation(company)
        profile: Int64 = np.concatenate([company[:1], rng.permutation(np.concatenate([company[1:], wanted]))])
        return profile

    def _selected(self, view: View, targets: Int64) -> Int64:
        """Items that the fake users have in common."""
        return targets[:0]

    def _weights(self, view: View, targets: Int64) -> NDArray[np.float64]:
        """(N,) in proportion to which fillers are drawn."""
        return np.ones(view.num_items)


class RandomAttack(Shilling):
    """Fillers at random: needs to know nothing but the catalogue."""

    name = "random"
    reference = _LAM


class AverageAttack(Shilling):
    """Fillers as often as honest users have them: what an item's mean rating is among ratings, its share is here."""

    name = "average"
    reference = _LAM

    def _weights(self, view: View, targets: Int64) -> NDArray[np.float64]:
        return view.counts


class BandwagonAttack(Shilling):
    """The most popular items beside the targets, the rest at random: public knowledge ties them to many users."""

    name = "bandwagon"
    reference = _BURKE

    def _selected(self, view: View, targets: Int64) -> Int64:
        popular: Int64 = np.argsort(-view.counts, kind="stable")[:_POPULAR]
        return popular


class SegmentAttack(Shilling):
    """What the intended audience likes beside the targets: items of their categories, else what their users had."""

    name = "segment"
    reference = _BURKE

    def _weights(self, view: View, targets: Int64) -> NDArray[np.float64]:
        weights = view.alike(targets) * view.counts
        if not weights.any():
            weights = view.beside(targets)
        return _or_popular(weights, targets, view)


class LoveHateAttack(Shilling):
    """Against the targets: fake users like what their audience likes, and never them."""

    name = "love-hate"
    reference = _MOBASHER
    promotes = False
    with_targets = False

    def _weights(self, view: View, targets: Int64) -> NDArray[np.float64]:
        return _or_popular(view.beside(targets), targets, view)


class ReverseBandwagonAttack(Shilling):
    """Against the targets: they stand beside what nobody wants."""

    name = "reverse-bandwagon"
    reference = _MOBASHER
    promotes = False

    def _weights(self, view: View, targets: Int64) -> NDArray[np.float64]:
        known = np.flatnonzero(view.counts > 0)
        weights = np.zeros(view.num_items)
        rare = known[np.argsort(view.counts[known], kind="stable")]
        weights[rare[: max(len(rare) // 2, 1)]] = 1.0
        return weights
