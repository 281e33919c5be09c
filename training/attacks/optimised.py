"""Fake users whose company is chosen by gradient, through what a model would learn from them.

The attacker knows the stream, not the model. So it fits a *surrogate* of its own to the stream, asks what the
surrogate would learn of the targets from its fake users, and changes their company until honest users would be shown
the targets. That is the bi-level problem of Tang, Wen and Wang (RecSys 2020, arXiv:2008.04876), answered by picking
items rather than ratings, as Huang et al. do against deep recommenders (NDSS 2021, arXiv:2101.02644).

**Surrogate.** The next item j after a history i₁ … iₙ scores ``cos(c, q_j)``, scaled, where c is the mean of the
vectors p of the history, each event weighing ``decay`` of the one after it: FISM (Kabbur, Ning and Karypis, KDD 2013)
with forgetting, so that order matters as it does to a sequence model. There is no bias that any company would raise:
a target has to be turned towards somebody.

**What it learns from the fakes.** Some steps of descent on the rows of the targets alone, unrolled, so that their
score with honest users has a gradient in the vectors of the fake users' company. The rest of the model stands
still: what few fakes change beside the targets is small, and this way a step costs no pass over the stream.

**Choice.** Company starts as real users' histories. Each round the events that the gradient asks to change most are
exchanged for the items that a first-order estimate says are best (HotFlip; Ebrahimi, Rao, Lowd and Dou, ACL 2018,
arXiv:1712.06751), fewer from round to round; the best state of all rounds is kept.

Cost at the defaults: 15 s on one core at 3,000 users, 3,600 items and 90 fake users. The catalogue enters by its most
frequent items only, so a larger one costs no more.

Legend: U fake users, S longest profile, T targets, W events before a target that are looked at, V items of the
surrogate, H honest histories, d width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from training.attacks.contract import Budget, Int64, Poison, View, fake_users
from training.attacks.generated import company_lengths, with_targets
from training.variety import NONE, newest

_GAP, _SCALE = -1e9, 16.0
_TOGETHER = 128  # fake users whose exchanges are weighed at a time, for memory's sake


@dataclass(frozen=True)
class OptimisedSettings:
    """How the surrogate is fitted, and how hard the attacker thinks.

    Attributes:
        items: most frequent ones that the surrogate knows and company is chosen from. dim: width of its vectors.
        window: newest events of a history that are read. decay: weight of an event over that of the one after it.
        fit_steps: of the surrogate, at most. passes: over the histories, at most. batch_size: histories per step.
        negatives: shared ones of the sampled softmax. rate: learning rate (Adam).
        audience: honest histories that the targets are meant for. shown: places in a list.
        unrolled: steps that the surrogate learns from the fakes. reach: how far they move a target in all, as a
            share of its vector's length.
        rounds: of exchange. exchanged: events of each fake user that the first round changes.
    """

    items: int = 4000
    dim: int = 32
    window: int = 50
    decay: float = 0.9
    fit_steps: int = 400
    passes: float = 8.0
    batch_size: int = 64
    negatives: int = 512
    rate: float = 1e-2
    audience: int = 1024
    shown: int = 20
    unrolled: int = 4
    reach: float = 0.3
    rounds: int = 50
    exchanged: int = 48

    def __post_init__(self) -> None:
        if not 0 < self.decay <= 1:
            raise ValueError(f"decay must lie in (0, 1]; got {self.decay}")
        for name in ("items", "dim", "window", "batch_size", "negatives", "audience", "shown", "unrolled"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")


class Surrogate:
    """The attacker's own model of what comes next; see the module's docstring.

    Attributes:
        items: (V,) int64 codes that it knows, ascending. p, q: (V, d) vectors of items in a history, and as what
            follows, unit length where they are compared.
    """

    def __init__(
        self,
        histories: Int64,
        items: Int64,
        counts: NDArray[np.float64],
        settings: OptimisedSettings,
        seed: int,
    ):
        """Fit to histories (H, W) of places in ``items``, `NONE` behind the last; ``counts`` (V,) of events."""
        self.items, self._settings = items, settings
        self._torch_rng = torch.Generator().manual_seed(seed)
        popularity = torch.from_numpy(counts).float() + 1
        spread = settings.dim**-0.5
        self.p, self.q = (
            (torch.randn(len(items), settings.dim, generator=self._torch_rng) * spread).requires_grad_()
            for _ in range(2)
        )
        self._fit(torch.from_numpy(histories), popularity / popularity.sum())
        for part in (self.p, self.q):
            part.requires_grad_(False)

    def contexts(self, histories: Tensor) -> Tensor:
        """(B, W, d): the context after each event of histories (B, W)."""
        at = torch.arange(histories.shape[1])
        age = (at[:, None] - at[None, :]).float()
        weight = torch.where(age >= 0, self._settings.decay ** age.clamp(min=0), 0.0)
        present = (histories >= 0).float()[..., None]
        total: Tensor = weight @ (self.p[histories.clamp(min=0)] * present)
        return total / (weight @ present).clamp(min=1e-6)

    def scores(self, contexts: Tensor) -> Tensor:
        """(..., V) of the items after contexts (..., d)."""
        return _agreement(contexts, self.q)

    def _fit(self, histories: Tensor, share: Tensor) -> None:
        settings = self._settings
        histories = histories[(histories >= 0).sum(dim=1) > 1]
        steps = min(settings.fit_steps, math.ceil(settings.passes * len(histories) / settings.batch_size))
        optimiser = torch.optim.Adam([self.p, self.q], settings.rate)
        every = torch.arange(len(self.items))
        few = len(self.items) <= 2 * settings.negatives
        for step in range(steps):
            optimiser.param_groups[0]["lr"] = settings.rate * (1 + math.cos(math.pi * step / steps)) / 2
            batch = histories[
                torch.randint(len(histories), (settings.batch_size,), generator=self._torch_rng)
            ]
            following = batch[:, 1:]
            own = following[following >= 0]
            context = self.contexts(batch)[:, :-1][following >= 0]
            drawn = every
            if not few:
                drawn = torch.multinomial(
                    share, settings.negatives, replacement=True, generator=self._torch_rng
                )
            expected = torch.zeros(len(drawn)) if few else torch.log(share[drawn] * len(drawn))
            others = _agreement(context, self.q[drawn]) - expected
            others = others.masked_fill(drawn[None, :] == own[:, None], _GAP)
            score = _SCALE * fn.cosine_similarity(context, self.q[own], dim=1)
            loss = fn.softplus(torch.logsumexp(others, dim=1) - score).mean()
            gradients = torch.autograd.grad(loss, [self.p, self.q])
            for part, gradient in zip((self.p, self.q), gradients, strict=True):
                part.grad = gradient
            optimiser.step()


def _agreement(contexts: Tensor, items: Tensor) -> Tensor:
    """(..., N) scaled cosine of contexts (..., d) and items (N, d)."""
    return _SCALE * (fn.normalize(contexts, dim=-1) @ fn.normalize(items, dim=-1).T)


class OptimisedAttack:
    """Company chosen by gradient through a surrogate model, so that honest users would be shown the targets.

    Args:
        event_type: code of the fake events. settings: of the surrogate and the search.
    """

    name: ClassVar[str] = "optimised"
    reference: ClassVar[str] = (
        "Tang, Wen and Wang, Revisiting adversarially learned injection attacks against recommender systems, "
        "RecSys 2020"
    )
    promotes: ClassVar[bool] = True

    def __init__(self, event_type: int = 0, settings: OptimisedSettings | None = None) -> None:
        self._event_type = event_type
        self._settings = settings or OptimisedSettings()

    def poison(self, view: View, targets: Int64, budget: Budget, rng: np.random.Generator) -> Poison:
        """See Attack."""
        targets = np.unique(targets)
        frequent = np.argsort(-view.counts, kind="stable")[: self._settings.items]
        items = np.union1d(frequent, targets)
        inside = np.full(view.num_items, NONE, np.int64)
        inside[items] = np.arange(len(items))
        histories = _newest(view, np.arange(len(view.sequences)), inside, self._settings.window)
        surrogate = Surrogate(histories, items, view.counts[items], self._settings, int(rng.integers(2**31)))
        profiles = _templates(view, inside, inside[targets], budget.users, rng)
        search = _Search(surrogate, histories, profiles, inside[targets], self._settings, rng)
        return fake_users(
            [items[row[row != NONE]] for row in search.run()], view, budget, rng, event_type=self._event_type
        )


def _newest(view: View, rows: Int64, inside: Int64, length: int) -> Int64:
    """(R, length) newest distinct items of some users, as places; only items that the surrogate knows."""
    chosen = view.sequences.take(rows)
    starts, lengths = view.sequences.offsets[:-1][rows], np.diff(view.sequences.offsets)[rows]
    at = np.repeat(starts - chosen.offsets[:-1], lengths) + np.arange(chosen.offsets[-1])
    places = inside[view.codes[at]]
    known = places != NONE
    return newest(places[known], np.concatenate([[0], np.cumsum(known)])[chosen.offsets], length)


def _templates(view: View, inside: Int64, targets: Int64, users: int, rng: np.random.Generator) -> Int64:
    """(U, S) profiles as places: the newest items of a real user who has enough, more by popularity, the targets."""
    lengths = company_lengths(view, targets, users, rng)
    popularity = view.counts[inside != NONE] + 1e-9
    popularity[targets] = 0
    lengths = np.minimum(lengths, len(popularity) - len(targets))
    had = np.diff(view.sequences.offsets)
    by_length = np.argsort(had, kind="stable")
    first = np.searchsorted(had[by_length], lengths)
    donors = by_length[first + (rng.random(users) * (len(had) - first)).astype(np.int64)]
    newest_ = _newest(view, donors, inside, int(lengths.max()) + len(targets))
    profiles = np.full((users, int(lengths.max()) + len(targets)), NONE, np.int64)
    for row, (known, length) in enumerate(zip(newest_, lengths, strict=True)):
        company = known[(known != NONE) & ~np.isin(known, targets)][-length:]
        share = popularity.copy()
        share[company] = 0
        more = rng.choice(len(share), length - len(company), replace=False, p=share / share.sum())
        profiles[row, : length + len(targets)] = with_targets(np.concatenate([more, company]), targets, rng)
    return profiles


class _Search:
    """Exchange of company for what makes honest users be shown the targets."""

    def __init__(
        self,
        surrogate: Surrogate,
        histories: Int64,
        profiles: Int64,
        targets: Int64,
        settings: OptimisedSettings,
        rng: np.random.Generator,
    ) -> None:
        self._surrogate, self._settings, self._rng = surrogate, settings, rng
        self._profiles, self._targets = torch.from_numpy(profiles), torch.from_numpy(targets)
        self._at = (self._profiles[:, None, :] == self._targets[None, :, None]).long().argmax(dim=2)  # (U, T)
        self._free = (self._profiles >= 0) & ~torch.isin(self._profiles, self._targets)
        self._audience = self._of_honest(histories)
        plain = surrogate.scores(self._audience)
        plain[:, self._targets] = _GAP
        self._bar = plain.topk(min(settings.shown, plain.shape[1]), dim=1).values[:, -1:]
        others = torch.ones(len(surrogate.items), dtype=torch.bool)
        others[self._targets] = False
        self._others = others

    def run(self) -> Int64:
        """(U, S) the best profiles met."""
        best, kept = math.inf, self._profiles.clone()
        for round_ in range(self._settings.rounds + 1):
            loss, gradient = self._gradient()
            if loss < best:
                best, kept = loss, self._profiles.clone()
            if round_ < self._settings.rounds:
                left = 1 - round_ / self._settings.rounds
                self._exchange(gradient, max(1, round(self._settings.exchanged * left)))
        return kept.numpy()

    def _of_honest(self, histories: Int64) -> Tensor:
        """(H, d) contexts of honest users at some moment of theirs."""
        counts = (histories != NONE).sum(axis=1)
        some = np.flatnonzero(counts)
        rows = self._rng.choice(some, min(self._settings.audience, len(some)), replace=False)
        moments = (self._rng.random(len(rows)) * counts[rows]).astype(np.int64)
        contexts = self._surrogate.contexts(torch.from_numpy(histories[rows]))
        return contexts[torch.arange(len(rows)), torch.from_numpy(moments)]

    def _gradient(self) -> tuple[float, Tensor]:
        """What honest users would be shown (lower is more of the targets), and its gradient in events (U, S, d)."""
        company = self._surrogate.p[self._profiles.clamp(min=0)].requires_grad_()
        loss = self._loss(self._before_targets(company))
        (gradient,) = torch.autograd.grad(loss, company)
        return loss.item(), gradient

    def _before_targets(self, company: Tensor) -> Tensor:
        """(U, T, d) contexts in which the fake users meet the targets, of events (U, S, d)."""
        age = torch.arange(self._settings.window)
        at = self._at[..., None] - 1 - age  # (U, T, W)
        weight = torch.where(at >= 0, self._settings.decay**age, 0.0)
        row = torch.arange(len(company))[:, None, None]
        return (weight[..., None] * company[row, at.clamp(min=0)]).sum(dim=2) / weight.sum(dim=2)[..., None]

    def _loss(self, contexts: Tensor) -> Tensor:
        """Minus the share of honest users shown a target, softly, after learning from contexts (U, T, d)."""
        q = self._surrogate.q[self._targets].clone().requires_grad_()
        flat = contexts.flatten(0, 1)  # (U * T, d)
        rest = torch.logsumexp(self._surrogate.scores(flat)[:, self._others], dim=1, keepdim=True)
        own = torch.arange(len(self._targets)).repeat(len(contexts))
        for _ in range(self._settings.unrolled):
            learned = fn.cross_entropy(torch.cat([_agreement(flat, q), rest], dim=1), own)
            (step,) = torch.autograd.grad(learned, q, create_graph=True)
            # A step's length is given, its direction learned: rates of the attacked model are not known.
            size = step.norm(dim=1, keepdim=True).clamp(min=1e-12)
            q = (
                q
                - q.detach().norm(dim=1, keepdim=True)
                * self._settings.reach
                / self._settings.unrolled
                * step
                / size
            )
        ahead = _agreement(self._audience, q) - self._bar  # (H, T)
        return -torch.sigmoid(ahead).mean()

    def _exchange(self, gradient: Tensor, count: int) -> None:
        """Put the best items in the ``count`` events of every fake user that matter most."""
        matter = gradient.norm(dim=2).masked_fill(~self._free, -1.0)
        size, at = matter.topk(min(count, matter.shape[1]), dim=1)  # (U, C)
        for first in range(0, len(at), _TOGETHER):
            users = torch.arange(first, min(first + _TOGETHER, len(at)))
            row = users[:, None]
            gain = -(gradient[row, at[users]] @ self._surrogate.p.T)  # (U', C, V)
            now = self._profiles[row, at[users]].clamp(min=0)
            gain -= gain.gather(2, now[..., None])
            barred = torch.zeros(len(users), len(self._surrogate.items), dtype=torch.bool)
            barred.scatter_(1, self._profiles[users].clamp(min=0), True)
            barred[:, self._targets] = True
            for slot in range(at.shape[1]):  # one after the other, that no user takes an item twice
                best, item = gain[:, slot].masked_fill(barred, _GAP).max(dim=1)
                chosen = torch.nonzero((best > 0) & (size[users, slot] > 0))[:, 0]
                self._profiles[users[chosen], at[users[chosen], slot]] = item[chosen]
                barred[chosen, item[chosen]] = True
