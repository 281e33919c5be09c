"""Attacks on the vectors that a model reads instead of on what they stand for: the worst case within a distance.

No one can send such a vector; whatever an attacker does to texts or events within that distance is no worse. See
`training.adversarial.perturb` for the ball and the steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from training.adversarial import perturb


@dataclass(frozen=True)
class EmbeddingAttack:
    """What FGM and PGD share.

    Attributes:
        epsilon: radius, as a share of each vector's own norm. steps: gradients taken.
    """

    name: ClassVar[str]
    reference: ClassVar[str]

    epsilon: float = 0.1
    steps: int = 1

    def __post_init__(self) -> None:
        if self.epsilon < 0:
            raise ValueError(f"epsilon must be at least 0; got {self.epsilon}")
        if self.steps < 1:
            raise ValueError(f"steps must be at least 1; got {self.steps}")

    def attack(self, loss_of: Callable[[Tensor], Tensor], history: Tensor) -> Tensor:
        """Representations within the ball that raise the loss.

        Args:
            loss_of: maps representations shaped like ``history`` to a scalar loss.
            history: (B, L, d); zeros (padding) stay zeros.
        """
        return history.detach() + perturb(loss_of, history, epsilon=self.epsilon, steps=self.steps)


@dataclass(frozen=True)
class FgmAttack(EmbeddingAttack):
    """One step to the edge of the ball, along the gradient of the loss."""

    name: ClassVar[str] = "fgm"
    reference: ClassVar[str] = (
        "Miyato, Dai and Goodfellow, Adversarial training methods for semi-supervised text classification, ICLR 2017"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps != 1:
            raise ValueError(f"steps: fgm takes one step, pgd several; got {self.steps}")


@dataclass(frozen=True)
class PgdAttack(EmbeddingAttack):
    """Several steps within the ball, each along the gradient of the loss where the last one ended."""

    name: ClassVar[str] = "pgd"
    reference: ClassVar[str] = (
        "Madry, Makelov, Schmidt, Tsipras and Vladu, Towards deep learning models resistant to adversarial attacks, "
        "ICLR 2018"
    )

    steps: int = 3
