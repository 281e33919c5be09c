"""Attacks on a user's own history at serving time: the model stays as it is, a few events do not.

Who can write into a history (malware in a browser, a shared account, a page that opens another) makes the model show
what the attacker wants: profile pollution (Yue, He, Zeng and McAuley 2021, section 4.2, who attack a copy of the
model extracted through its answers; the weights given here may be those of a copy too). Items are discrete, so each
event is chosen as HotFlip chooses characters (Ebrahimi, Rao, Lowd and Dou 2018, section 3): by the first-order effect
of the exchange, g·(x' - x), with g the gradient of the goal with respect to the item read at a position; the most
promising exchanges are then tried. The goal is the log of the targets' share in a softmax over the catalogue.

No randomness: the same histories get the same events. Cost: (1 + checked) passes over a batch per event.

Legend: B rows, L positions, d width, N items, T targets, K exchanges that are tried.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import functional as fn

from training.data import Batch
from training.model import SequenceModel

_EFFECTS_AT_ONCE = 16_000_000  # (positions × items) floats held at a time
_UNKNOWN_GAP_MS = 60_000.0  # between events of somebody who has only one
_FLIPS = 2  # exchanges of an appended event

_HOTFLIP = (
    "Ebrahimi, Rao, Lowd and Dou, HotFlip: white-box adversarial examples for text classification, ACL 2018"
)
_POLLUTION = (
    "Yue, He, Zeng and McAuley, Black-box attacks on sequential recommenders via data-free model extraction, "
    "RecSys 2021"
)


class HistoryAttack(Protocol):
    """A named way to change histories so that targets are shown."""

    name: ClassVar[str]
    reference: ClassVar[str]

    def attack(
        self, model: SequenceModel, items: Tensor, batch: Batch, targets: Tensor, budget: int
    ) -> Batch:
        """The histories as the attacker leaves them; their next items (`Batch.targets`) stay at the end.

        Args:
            model: in evaluation mode. items: (N, d) representations that it reads and ranks.
            batch: B right-aligned histories (B, L). targets: (T,) int64 items to be shown; never put into a history.
            budget: events that may be changed or added in each history.
        """


@dataclass(frozen=True)
class ReplaceAttack:
    """Up to `budget` events of the history are exchanged for others that the user did not have.

    Attributes:
        checked: exchanges tried for each event, the most promising first.
    """

    name: ClassVar[str] = "replace"
    reference: ClassVar[str] = _HOTFLIP

    checked: int = 16

    def attack(
        self, model: SequenceModel, items: Tensor, batch: Batch, targets: Tensor, budget: int
    ) -> Batch:
        """See HistoryAttack."""
        unit = fn.normalize(items.detach(), dim=-1)
        attacked = batch
        for _ in range(budget):
            out = _taken(batch, attacked, targets, len(items))
            still = batch.mask & (attacked.items == batch.items)
            attacked, _ = _flip(model, unit, attacked, targets, still, out, self.checked)
        return attacked


@dataclass(frozen=True)
class AppendAttack:
    """Up to `budget` events are added behind the history, at the user's own pace and of the type of the last one.

    Each is put between the history and what was added before, since the last event weighs most. The first that does
    not help is left out, and no other follows.

    Attributes:
        checked: exchanges tried for each event, the most promising first.
    """

    name: ClassVar[str] = "append"
    reference: ClassVar[str] = _POLLUTION

    checked: int = 16

    def attack(
        self, model: SequenceModel, items: Tensor, batch: Batch, targets: Tensor, budget: int
    ) -> Batch:
        """See HistoryAttack."""
        unit = fn.normalize(items.detach(), dim=-1)
        gaps, attacked = _pace(batch), batch
        like = unit @ fn.normalize(unit[targets].mean(0), dim=-1)  # (N,)
        with torch.no_grad():
            reached = _goal(model, _read(unit, batch), batch, unit, targets)
        going = torch.ones_like(reached, dtype=torch.bool)
        for added in range(min(budget, model.config.length)):
            out = _taken(batch, attacked, targets, len(items))
            nearest = like.expand(len(out), -1).masked_fill(out, float("-inf")).argmax(1)
            longer = _longer(attacked, nearest, gaps, added, model.config.length)
            here = torch.zeros_like(longer.mask)
            here[:, -1 - added] = True
            for _ in range(_FLIPS):
                longer, goal = _flip(model, unit, longer, targets, here, out, self.checked)
            going = going & (goal > reached) & ~out.all(dim=1)
            attacked = _where(going, longer, attacked)
            reached = torch.where(going, goal, reached)
        return attacked


def _read(unit: Tensor, batch: Batch) -> Tensor:
    """(B, L, d) what the model reads of the histories."""
    return unit[batch.items] * batch.mask.unsqueeze(-1)


def _goal(model: SequenceModel, history: Tensor, batch: Batch, items: Tensor, targets: Tensor) -> Tensor:
    """(B,) log of the targets' share, all items taking part."""
    scores = model.next_scores(history, batch.types, batch.times, batch.mask, items, batch.items)
    return torch.logsumexp(scores[:, targets], dim=1) - torch.logsumexp(scores, dim=1)


def _flip(
    model: SequenceModel,
    unit: Tensor,
    batch: Batch,
    targets: Tensor,
    where: Tensor,
    out: Tensor,
    checked: int,
) -> tuple[Batch, Tensor]:
    """Each history with the best exchange of one event, or as it was; their goals (B,).

    Args:
        where: (B, L) bool, events that may be exchanged. out: (B, N) bool, items that may not be taken.
    """
    start = _read(unit, batch).requires_grad_(True)
    goal = _goal(model, start, batch, unit, targets)
    (gradient,) = torch.autograd.grad(goal.sum(), start)
    effects, positions, items = _promising(gradient, start.detach(), unit, where, out, checked)
    best, rows = goal.detach(), batch.items
    with torch.no_grad():
        for k in range(effects.shape[1]):
            tried = replace(batch, items=batch.items.scatter(1, positions[:, k, None], items[:, k, None]))
            reached = _goal(model, _read(unit, tried), tried, unit, targets)
            better = (reached > best) & torch.isfinite(effects[:, k])
            best = torch.where(better, reached, best)
            rows = torch.where(better[:, None], tried.items, rows)
    return replace(batch, items=rows), best


def _promising(
    gradient: Tensor, start: Tensor, unit: Tensor, where: Tensor, out: Tensor, count: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The exchanges with the largest first-order effect: effects, positions and items, each (B, K).

    Args:
        gradient, start: (B, L, d). unit: (N, d). where: (B, L) bool. out: (B, N) bool, items that may not be taken.
    """
    B, L, _ = gradient.shape
    own = (gradient * start).sum(-1, keepdim=True)  # (B, L, 1)
    stride = max(1, _EFFECTS_AT_ONCE // (B * L))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for at in range(0, len(unit), stride):
        some = unit[at : at + stride]
        effects = gradient @ some.T - own  # (B, L, C)
        closed = ~where[:, :, None] | out[:, None, at : at + stride]
        top = effects.masked_fill(closed, float("-inf")).flatten(1).topk(min(count, L * len(some)))
        found.append((top.values, top.indices // len(some), at + top.indices % len(some)))
    values, positions, items = (torch.cat(parts, dim=1) for parts in zip(*found, strict=True))
    best = values.topk(min(count, values.shape[1]))
    return best.values, positions.gather(1, best.indices), items.gather(1, best.indices)


def _taken(batch: Batch, attacked: Batch, targets: Tensor, count: int) -> Tensor:
    """(B, N) bool: the targets, and items in each history as it was or is."""
    events = torch.zeros((len(batch.items), count))
    for histories in (batch, attacked):
        events.scatter_add_(1, histories.items, histories.mask.float())
    return (events > 0).index_fill(1, targets, True)


def _pace(batch: Batch) -> Tensor:
    """(B,) int64: median milliseconds between two events of each history."""
    gaps = (batch.times[:, 1:] - batch.times[:, :-1]).float()
    gaps = gaps.masked_fill(~(batch.mask[:, 1:] & batch.mask[:, :-1]), float("nan"))
    if not gaps.shape[1]:
        return torch.full((len(gaps),), int(_UNKNOWN_GAP_MS))
    return gaps.nanmedian(dim=1).values.nan_to_num(_UNKNOWN_GAP_MS).long()


def _longer(batch: Batch, items: Tensor, gaps: Tensor, added: int, length: int) -> Batch:
    """One event more in each history, before the last ``added``; the newest `length` stay.

    Items (B,) of the events; gaps (B,) ms between what is added.
    """
    split = batch.items.shape[1] - added
    rows = [batch.items[:, :split], items[:, None], batch.items[:, split:]]
    columns = {
        "items": torch.cat(rows, dim=1),
        "types": torch.cat([batch.types, batch.types[:, -1:]], dim=1),
        "times": torch.cat([batch.times, batch.times[:, -1:] + gaps[:, None]], dim=1),
        "mask": torch.cat([batch.mask, torch.ones_like(batch.mask[:, -1:])], dim=1),
        # what comes next comes behind the added event
        "targets": torch.cat([torch.full_like(batch.targets[:, :1], -1), batch.targets], dim=1),
        "weights": torch.cat([torch.zeros_like(batch.weights[:, :1]), batch.weights], dim=1),
    }
    return Batch(**{name: column[:, -length:] for name, column in columns.items()})


def _where(better: Tensor, longer: Batch, batch: Batch) -> Batch:
    """The longer histories where they are better (B,), else as they were."""
    short = longer.items.shape[1] - batch.items.shape[1]
    empty = {"targets": -1}

    def chosen(name: str) -> Tensor:
        old: Tensor = getattr(batch, name)
        old = fn.pad(old, (short, 0), value=empty.get(name, 0))
        return torch.where(better[:, None], getattr(longer, name), old)

    return Batch(*(chosen(field.name) for field in fields(Batch)))
