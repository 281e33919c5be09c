"""Adversarial perturbations of the item representations a user's history is made of.

`perturb` covers FGM (Miyato et al. 2017, arXiv:1605.07725, eq. 3-4: one step, δ = ε·g/‖g‖) and K-step PGD
(Madry et al. 2018, arXiv:1706.06083) in the L2 ball: ascend along g/‖g‖, project back into the ball. `freelb_losses`
is FreeLB (Zhu et al. 2020, arXiv:1909.11764, algorithm 1): the weights learn from every point of the ascent, so no
pass is thrown away. The radius is relative: a vector x may move by at most ``epsilon * ‖x‖``, so the setting means
the same at any scale of the representations; it may differ from row to row. Gradients come from
``torch.autograd.grad``, which leaves no trace in ``parameter.grad``: one ``engine.backward`` on the mixed loss serves
DeepSpeed at every ZeRO stage.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def perturb(
    loss_of: Callable[[Tensor], Tensor],
    items: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int,
    step_size: float | None = None,
    first_gradient: Tensor | None = None,
) -> Tensor:
    """Find δ within ``epsilon·‖x‖`` per representation that raises the loss.

    Args:
        loss_of: maps representations shaped like ``items`` to a scalar loss.
        items: (B, L, d) representations of the history; any leading shape works, the last axis is a vector.
        epsilon: radius of the ball, as a share of each vector's own norm; a tensor must broadcast to (B, L, 1).
        steps: 1 = FGM (one full step to the sphere); more = PGD.
        step_size: length of a PGD step as a share of ``epsilon``; default ``2.5 / steps``, at most 1.
        first_gradient: that of the loss at ``items``, where it is at hand: saves a pass.

    Returns:
        δ shaped like ``items``, detached; zero where the loss does not depend on the vector (padding).
    """
    size = _step_size(steps) if step_size is None else step_size
    base = items.detach()
    radius = epsilon * base.norm(dim=-1, keepdim=True)
    delta = torch.zeros_like(base)
    for step in range(steps):
        if step == 0 and first_gradient is not None:
            gradient = first_gradient
        else:
            moved = (base + delta).requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss_of(moved), moved)
        delta = _ascended(delta, gradient, radius if steps == 1 else size * radius, radius)
    return delta.detach()


def freelb_losses(
    loss_of: Callable[[Tensor], Tensor],
    items: Tensor,
    *,
    epsilon: float | Tensor,
    steps: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean of the losses at ``steps`` points of an ascent from a random start in the ball; its graph is kept.

    Args:
        loss_of, items, epsilon: as in `perturb`. steps: points, each with a pass of its own; 1 = random noise.
        generator: randomness of the start.
    """
    base = items.detach()
    radius = epsilon * base.norm(dim=-1, keepdim=True)
    draw = torch.randn(base.shape, generator=generator, device=base.device)
    start = torch.rand(base.shape[:-1], generator=generator, device=base.device).unsqueeze(-1)
    delta = start * radius * draw / draw.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    total = torch.zeros((), device=base.device)
    for step in range(steps):
        moved = delta.detach().requires_grad_(True)
        loss = loss_of(items + moved)
        total = total + loss
        if step + 1 < steps:
            (gradient,) = torch.autograd.grad(loss, moved, retain_graph=True)
            delta = _ascended(delta, gradient, _step_size(steps) * radius, radius)
    return total / steps


def vulnerability(losses: Tensor, rows: Tensor, count: int) -> Tensor:
    """(B, 1, 1) factors on the radius, 1 on average or so: users whose targets are learned well move further.

    They are the vulnerable ones (Zhang et al., Improving the shortest plank: vulnerability-aware adversarial
    training, RecSys 2024: σ((L̄ - L_u) / L̄)); doubled, so that a user of average loss keeps the radius that is set.

    Args:
        losses: (T,) of the targets, detached. rows: (T,) int64 the row of each. count: B.
    """
    sums = torch.zeros(count, device=losses.device).index_add_(0, rows, losses.float())
    mean = sums / torch.bincount(rows, minlength=count).clamp(min=1)
    usual = losses.float().mean().clamp(min=1e-12)
    return (2 * torch.sigmoid((usual - mean) / usual)).view(-1, 1, 1)


def _step_size(steps: int) -> float:
    return min(1.0, 2.5 / steps)


def _ascended(delta: Tensor, gradient: Tensor, step: Tensor, radius: Tensor) -> Tensor:
    """One step up along the gradient's direction, and back into the ball."""
    norm = gradient.norm(dim=-1, keepdim=True)
    # Where nothing flows back the direction is nothing, not 0/0.
    direction = torch.where(norm > 0, gradient / norm.clamp(min=1e-30), torch.zeros_like(gradient))
    delta = delta + step * direction
    length = delta.norm(dim=-1, keepdim=True)
    return delta * torch.clamp(radius / length.clamp(min=1e-30), max=1.0)
