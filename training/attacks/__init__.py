"""Attacks on a recommender that learns from a public stream, by name."""

from training.attacks.contract import Attack, Budget, Poison, View
from training.attacks.shilling import (
    AverageAttack,
    BandwagonAttack,
    LoveHateAttack,
    RandomAttack,
    ReverseBandwagonAttack,
    SegmentAttack,
)

ATTACKS: dict[str, type[Attack]] = {
    attack.name: attack
    for attack in (
        RandomAttack,
        AverageAttack,
        BandwagonAttack,
        SegmentAttack,
        LoveHateAttack,
        ReverseBandwagonAttack,
    )
}

__all__ = ["ATTACKS", "Attack", "Budget", "Poison", "View"]
