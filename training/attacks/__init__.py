"""Attacks by name: on what is learned from a public stream, and on a model that stays as it is while it serves."""

from training.attacks.contract import Attack, Budget, Poison, View
from training.attacks.embedding import EmbeddingAttack, FgmAttack, PgdAttack
from training.attacks.generated import GanAttack
from training.attacks.optimised import OptimisedAttack
from training.attacks.sequential import AppendAttack, HistoryAttack, ReplaceAttack
from training.attacks.shilling import (
    AverageAttack,
    BandwagonAttack,
    LoveHateAttack,
    RandomAttack,
    ReverseBandwagonAttack,
    SegmentAttack,
)
from training.attacks.texts import (
    CharacterEdits,
    GreedyText,
    KeywordStuffing,
    PromotionalPrefix,
    SynonymEdits,
    TextAttack,
    TextView,
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
        GanAttack,
        OptimisedAttack,
    )
}

HISTORY_ATTACKS: dict[str, type[HistoryAttack]] = {
    attack.name: attack for attack in (ReplaceAttack, AppendAttack)
}

TEXT_ATTACKS: dict[str, type[TextAttack]] = {
    attack.name: attack
    for attack in (KeywordStuffing, PromotionalPrefix, CharacterEdits, SynonymEdits, GreedyText)
}

EMBEDDING_ATTACKS: dict[str, type[EmbeddingAttack]] = {
    attack.name: attack for attack in (FgmAttack, PgdAttack)
}

__all__ = [
    "ATTACKS",
    "EMBEDDING_ATTACKS",
    "HISTORY_ATTACKS",
    "TEXT_ATTACKS",
    "Attack",
    "Budget",
    "EmbeddingAttack",
    "HistoryAttack",
    "Poison",
    "TextAttack",
    "TextView",
    "View",
]
