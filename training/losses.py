"""What training minimises: next-item softmax over the catalogue, full or sampled, clean and perturbed.

Legend: B rows, L positions, d width, N items of the round, T targets of a batch, S sampled negatives.

Losses are sums weighted by trust, to be divided by the weight of the *global* batch: DeepSpeed averages gradients
over workers, so a worker's share times the number of workers over the global weight gives the exact global mean
however unevenly rows fall. Everything from the logits on is float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as fn

from training.adversarial import freelb_losses, perturb, vulnerability
from training.config import AdversarialConfig
from training.data import Batch
from training.influence import clipped_rows
from training.model import SequenceModel
from training.repeats import OUT, Past, only_new, past_of
from training.text_tower import LiveTexts, TextTower, put_live


def full_softmax(
    model: SequenceModel, users: Tensor, items: Tensor, targets: Tensor, past: Past | None = None
) -> Tensor:
    """(T,) cross-entropy of ``targets`` (T,) rows given users (T, d) over all items (N, d).

    With ``past`` the items of each target's history take part as copies or not at all.
    """
    scores = model.scores(users, items).float()
    own = scores.gather(1, targets[:, None]).squeeze(1)
    if past is None:
        return torch.logsumexp(scores, dim=1) - own  # one pass less over (T, N) than cross_entropy takes
    every = torch.arange(len(items), device=items.device)
    scores = scores.masked_fill(past.holds(every), OUT)
    total, own = past.summed(torch.logsumexp(scores, dim=1), own, targets)
    return total - own


def sampled_softmax(
    model: SequenceModel,
    users: Tensor,
    items: Tensor,
    targets: Tensor,
    negatives: Tensor,
    log_q: Tensor,
    past: Past | None = None,
) -> Tensor:
    """(T,) cross-entropy against shared negatives, corrected for how often each is drawn.

    Negatives are drawn with replacement from q, and log(S·q) is taken off their scores (Bengio and Senécal 2008;
    TensorFlow's ``sampled_softmax_loss``), so the expected partition function is that of the full softmax. The target
    keeps its plain score and is struck out where it was drawn as its own negative.

    Args:
        model: gives scores.
        users: (T, d). items: (N, d) representations. targets: (T,) int64 rows of ``items``.
        negatives: (S,) int64 rows of ``items``.
        log_q: (S,) log of the probability that one draw gives each negative.
        past: if given, the items of each target's history take part as copies or not at all.
    """
    own = model.config.scale * fn.cosine_similarity(users, items[targets], dim=-1).float()
    scores = model.scores(users, items[negatives]).float()
    # Drawn from all items with the target struck out, S negatives stand for the N - 1 others.
    scores = scores - (log_q + math.log(len(negatives)))
    out = negatives[None, :] == targets[:, None]
    if past is None:
        return fn.softplus(torch.logsumexp(scores.masked_fill(out, OUT), dim=1) - own)
    scores = scores.masked_fill(out | past.holds(negatives), OUT)
    new = torch.logaddexp(torch.logsumexp(scores, dim=1), own.masked_fill(past.holds_own(targets), OUT))
    total, own = past.summed(new, own, targets)
    return total - own


@dataclass(frozen=True)
class Negatives:
    """Shared negatives of one step: (S,) rows of the item table and the log-probability of one draw of each."""

    rows: Tensor
    log_q: Tensor


def draw_negatives(log_weights: Tensor, count: int, generator: torch.Generator) -> Negatives:
    """Draw ``count`` rows with replacement from softmax(log_weights (N,))."""
    log_q = torch.log_softmax(log_weights.double(), dim=0)
    cumulative = torch.cumsum(log_q.exp(), dim=0)
    draw = torch.rand(count, generator=generator, dtype=torch.float64) * cumulative[-1]
    rows = torch.searchsorted(cumulative, draw).clamp(max=len(log_weights) - 1)
    return Negatives(rows, log_q[rows].float())


class Objective(nn.Module):
    """The model with its loss in one forward, so that an engine sees a scalar and ZeRO's hooks see every module."""

    def __init__(
        self,
        model: SequenceModel,
        adversarial: AdversarialConfig,
        autocast: bool = False,
        tower: TextTower | None = None,
        gradient_ratio: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.gradient_ratio = (
            gradient_ratio  # of a sequence's gradient to the batch's median, at most; 0 = any
        )
        self.tower = tower  # the text encoder where it is trained too
        self.adversarial = adversarial
        self.autocast = autocast  # bf16 arithmetic; weights, optimiser state and losses stay float32

    def forward(
        self,
        batch: Batch,
        text: Tensor,
        slots: Tensor,
        negatives: Negatives | None = None,
        *,
        strength: float = 0.0,
        generator: torch.Generator | None = None,
        live: LiveTexts | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted loss sums over the batch's targets.

        Args:
            batch: B chunks; its rows index ``text`` and ``slots``.
            text: (N, D) float32 text vectors of the round's items. slots: (N,) int64.
            negatives: sampled softmax against these; None = full softmax over all N.
            strength: share of the full radius at which the loss on perturbed histories is mixed in; 0 = none.
            generator: randomness of id dropout, the same on every worker.
            live: texts to encode in this step instead of taking their vectors from ``text`` (with a tower only).

        Returns:
            Scalars (mixed, clean, adversarial): the first carries the graph, the others are for the log.
        """
        with torch.autocast(batch.items.device.type, dtype=torch.bfloat16, enabled=self.autocast):
            used, batch, negatives = _narrow(batch, negatives)
            picked = (text, slots) if used is None else (text[used], slots[used])
            attacked = strength > 0 and self.adversarial.enabled and self.adversarial.share > 0
            tie: Tensor | float = 0.0
            words: Tensor | None = None
            cached = picked[0]
            if self.tower is not None and live is not None:
                words = self.tower.words(live) if attacked and self.adversarial.words else None
                vectors = self.tower.live_vectors(live, words)
                picked = (put_live(cached, used, live, vectors), picked[1])
                # The vectors' backward is a collective: it must run where this worker has no use for them too.
                tie = 0.0 * vectors.sum()
            items_Nd = self.model.item_representations(*picked, generator=generator)
            history = items_Nd[batch.items] * batch.mask.unsqueeze(-1)  # (B, L, d)
            losses_of, rows = self._losses_given(batch, items_Nd, negatives)
            losses = losses_of(history)
            clean = losses.sum() + tie
            if not attacked:
                return clean, clean.detach(), torch.zeros_like(clean.detach())
            count = math.ceil(self.adversarial.batch_share * len(history))
            among = losses[rows < count].sum()
            radius: Tensor | float = strength * self.adversarial.epsilon
            if self.adversarial.sizes == "vulnerable":
                radius = radius * vulnerability(losses.detach(), rows, len(history))[:count]
            items, moved = items_Nd, history
            if words is not None and self.tower is not None and live is not None:
                again = self.tower.live_vectors(live, self._misread(words, among + tie, strength))
                tie = tie + 0.0 * again.sum()
                text_now = put_live(cached, used, live, again)
                items = self.model.item_representations(text_now, picked[1], generator=generator)
                moved = items[batch.items] * batch.mask.unsqueeze(-1)
            some_of = self._losses_given(batch.first(count), items, negatives)[0]
            perturbed = (
                self._perturbed(lambda x: some_of(x).sum(), history, moved[:count], among, radius, generator)
                + tie
            )
        mixed = clean + self.adversarial.share * (perturbed - among)
        # For the log: what the whole batch would lose if those left alone lost in proportion.
        shown = perturbed.detach() * clean.detach() / among.detach().clamp(min=1e-12)
        return mixed, clean.detach(), shown

    def _perturbed(
        self,
        loss_of: Callable[[Tensor], Tensor],
        history: Tensor,
        moved: Tensor,
        among: Tensor,
        radius: float | Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Perturbed loss of the first histories of a batch (batches are shuffled), whose clean loss is ``among``.

        ``moved`` are they, with their texts misread where words are perturbed, too.
        """
        config = self.adversarial
        if config.method == "freelb":
            return freelb_losses(loss_of, moved, epsilon=radius, steps=config.steps, generator=generator)
        (gradient,) = torch.autograd.grad(among, history, retain_graph=True)
        first = gradient[: len(moved)]
        delta = perturb(loss_of, moved, epsilon=radius, steps=config.steps, first_gradient=first)
        return loss_of(moved + delta)

    def _misread(self, words: Tensor, loss: Tensor, strength: float) -> Tensor:
        """Word embeddings (S, T, H) moved to raise the loss (FGM, as in the paper that introduced it)."""
        (gradient,) = torch.autograd.grad(loss, words, retain_graph=True)
        radius = strength * self.adversarial.words
        return words + perturb(lambda x: x.sum(), words, epsilon=radius, steps=1, first_gradient=gradient)

    def _losses_given(
        self, batch: Batch, items: Tensor, negatives: Negatives | None
    ) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """From histories (B, L, d) to the weighted losses of T targets, and the row (T,) of each."""
        wanted = batch.targets >= 0  # (B, L)
        targets = batch.targets[wanted]  # (T,)
        past: Past | None = None
        if self.model.config.repeats != "plain":
            past = past_of(batch.items, batch.mask, wanted, len(items))
        if past is not None and self.model.repeats is None:
            past, new = only_new(past, targets)
            targets, wanted = targets[new], wanted.masked_scatter(wanted, new)
        weights = batch.weights[wanted]

        def losses_of(history: Tensor) -> Tensor:
            encoded = self.model(history, batch.types, batch.times, batch.mask)  # (B, L, d)
            if self.gradient_ratio and encoded.requires_grad:
                encoded.register_hook(lambda gradient: clipped_rows(gradient, self.gradient_ratio))
            users, now = encoded[wanted], past  # (T, d)
            if past is not None and self.model.repeats is not None:
                copies = self.model.repeats(encoded, history, batch.times, batch.mask)[wanted]
                now = replace(past, copies=copies, same=batch.items[past.row] == targets[:, None])
            if negatives is None:
                losses = full_softmax(self.model, users, items, targets, now)
            else:
                drawn = (negatives.rows, negatives.log_q)
                losses = sampled_softmax(self.model, users, items, targets, *drawn, now)
            return losses * weights

        return losses_of, wanted.nonzero(as_tuple=True)[0]


def _narrow(batch: Batch, negatives: Negatives | None) -> tuple[Tensor | None, Batch, Negatives | None]:
    """With sampled negatives only the rows in use are represented: a large catalogue is never touched whole."""
    if negatives is None:
        return None, batch, None
    targets = batch.targets.clamp(min=0)
    used, back = torch.unique(
        torch.cat([batch.items.flatten(), targets.flatten(), negatives.rows]), return_inverse=True
    )
    size = batch.items.numel()
    items = back[:size].view_as(batch.items)
    targets = torch.where(batch.targets >= 0, back[size : 2 * size].view_as(batch.targets), batch.targets)
    narrowed = Batch(items, batch.types, batch.times, batch.mask, targets, batch.weights)
    return used, narrowed, Negatives(back[2 * size :], negatives.log_q)
