"""Adversarial perturbations of the item representations a user's history is made of.

One function covers FGM (Miyato et al. 2017, arXiv:1605.07725, eq. 3-4: one step, δ = ε·g/‖g‖) and K-step PGD
(Madry et al. 2018, arXiv:1706.06083) in the L2 ball: ascend along g/‖g‖, project back into the ball. The radius is
relative: a vector x may move by at most ``epsilon * ‖x‖``, so the setting means the same at any scale of the
representations. Gradients come from ``torch.autograd.grad``, which leaves no trace in ``parameter.grad``: one
``engine.backward`` on the mixed loss serves DeepSpeed at every ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def perturb(
    loss_of: Callable[[Tensor], Tensor],
    items: Tensor,
    *,
    epsilon: float,
    steps: int,
    step_size: float | None = None,
    first_loss: Tensor | None = None,
) -> Tensor:
    """Find δ within ``epsilon·‖x‖`` per representation that raises the loss.

    Args:
        loss_of: maps representations shaped like ``items`` to a scalar loss.
        items: (B, L, d) representations of the history; any leading shape works, the last axis is a vector.
        epsilon: radius of the ball, as a share of each vector's own norm.
        steps: 1 = FGM (one full step to the sphere); more = PGD.
        step_size: length of a PGD step as a share of ``epsilon``; default ``2.5 / steps``, at most 1.
        first_loss: ``loss_of(items)`` if already at hand with its graph on ``items``: saves one forward pass.

    Returns:
        δ shaped like ``items``, detached; zero where the loss does not depend on the vector (padding).
    """
    size = min(1.0, 2.5 / steps) if step_size is None else step_size
    base = items.detach()
    radius = epsilon * base.norm(dim=-1, keepdim=True)
    delta = torch.zeros_like(base)
    for step in range(steps):
        if step == 0 and first_loss is not None:
            (gradient,) = torch.autograd.grad(first_loss, items, retain_graph=True)
        else:
            moved = (base + delta).requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_of(moved), moved)
        norm = gradient.norm(dim=-1, keepdim=True)
        # Where nothing flows back the direction is nothing, not 0/0.
        direction = torch.where(norm > 0, gradient / norm.clamp(min=1e-30), torch.zeros_like(gradient))
        delta = delta + (radius if steps == 1 else size * radius) * direction
        length = delta.norm(dim=-1, keepdim=True)
        delta = delta * torch.clamp(radius / length.clamp(min=1e-30), max=1.0)
    return delta.detach()
