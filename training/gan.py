"""A generative adversarial pair over users' histories: one network invents them, another tells them from real ones.

The **generator** is a GRU over a table of item vectors that says what comes next. It learns the likelihood of real
histories first (as SeqGAN does; Yu, Zhang, Wang and Yu, AAAI 2017, arXiv:1609.05473). From then on the table stays
as it is, the generator continues the beginnings of real histories, and learns from the discriminator's verdict on
what it wrote. Items are drawn by straight-through Gumbel-softmax (Jang, Gu and Poole, ICLR 2017,
arXiv:1611.01144): an item goes forward, the gradient of a softmax at a falling temperature comes back; so no policy
gradient is needed.

The **discriminator** gives a logit to every event from the items before it: its item, the two before, the mean of
all before, and how the item agrees with those. A small network with spectral norm (Miyato, Kataoka, Koyama and
Yoshida, ICLR 2018, arXiv:1802.05957) and hinge loss, with a learning rate of its own, above the generator's (Heusel,
Ramsauer, Unterthiner, Nessler and Hochreiter, NeurIPS 2017, arXiv:1706.08500). Being causal it also judges a single
next item, which makes it a **screen**: of several drafts the one that it holds to be most real is kept. For that it
learns on when the generator is done.

A generator that found one history that passes will write it for everybody (**mode collapse**). No discriminator of
single histories sees that, so `variety` compares sets of them; the generator is kept as it was at the newest check
that found no collapse, and training stops after two in a row that did.

A history here is a set in order: the newest events of a user, an item where it was had last.

Cost at the defaults: 0.6 MB of weights at 4,000 items; 32 s on one core for 3,000 users, and no more for further
ones, as steps are bounded. Drawing costs one pass over the items per event: 50,000 take some 9 s with screening.

Legend: R histories, B of a batch, L positions, V items that can be named, C candidates, w width of an item as the
discriminator reads it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as fn
from torch.nn.utils.parametrizations import spectral_norm

from training.variety import NONE, Floats, Int64, Variety, newest, variety

_COMPARED = 400  # histories on either side of a check
_JUDGED = 64  # histories that are judged at a time, for memory's sake
_REFINED_ON = 1500  # written histories that the discriminator learns from at last
_TINY = 1e-30


@dataclass(frozen=True)
class GanSettings:
    """How large the pair is and how it learns.

    Attributes:
        length: newest events of a history that are read. items: that can be named, the most frequent ones.
        dim: width of item vectors and of the generator's state. hidden: width of the discriminator.
        warmup_steps, steps, refining_steps: of likelihood alone, then adversarial, then the discriminator's, at most.
        passes: over the histories that each may take; what bounds the steps where users are few.
        batch_size: histories per step. negatives: shared ones of the likelihood's sampled softmax.
        continued: items that the generator writes in an adversarial step, and are judged.
        warmup_rate, generator_rate, discriminator_rate: learning rates (Adam).
        likelihood: weight of the likelihood beside the discriminator's verdict.
        hot, cold: temperatures of the softmax that gradients come back through, at the first and the last step.
        share: of drafts that screening keeps. checks: times that variety is looked at in adversarial training.
    """

    length: int = 40
    items: int = 4000
    dim: int = 32
    hidden: int = 64
    warmup_steps: int = 400
    steps: int = 150
    refining_steps: int = 200
    passes: float = 10.0
    batch_size: int = 64
    negatives: int = 512
    continued: int = 6
    warmup_rate: float = 1e-2
    generator_rate: float = 1e-3
    discriminator_rate: float = 4e-3
    likelihood: float = 0.5
    hot: float = 1.0
    cold: float = 0.3
    share: float = 0.25
    checks: int = 5

    def __post_init__(self) -> None:
        counts = ("items", "dim", "hidden", "batch_size", "negatives", "continued", "checks")
        for name in (*counts, "passes", "warmup_rate", "generator_rate", "discriminator_rate", "hot", "cold"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0; got {getattr(self, name)}")
        if self.length < 2:
            raise ValueError(f"length must be at least 2; got {self.length}")
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie in (0, 1]; got {self.share}")
        if min(self.warmup_steps, self.steps, self.refining_steps, self.likelihood) < 0:
            raise ValueError("warmup_steps, steps, refining_steps and likelihood must not be negative")


class _Generator(nn.Module):
    """What comes next, after every beginning of a history. Its table's last row stands before a first event."""

    def __init__(self, counts: Tensor, dim: int) -> None:
        super().__init__()
        self.table = nn.Embedding(len(counts) + 1, dim)
        nn.init.normal_(self.table.weight, std=dim**-0.5)
        self.recurrent = nn.GRU(dim, dim, batch_first=True)
        self.out = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.log(counts + 1))

    def begin(self, rows: int) -> Tensor:
        """(rows, dim): the state before a first event."""
        return self.step(self.table.weight[-1].expand(rows, -1), torch.zeros(rows, self.table.embedding_dim))

    def step(self, items: Tensor, state: Tensor) -> Tensor:
        """The state (B, dim) after one more item, given as vectors (B, dim)."""
        after: Tensor = self.recurrent(items[:, None], state[None])[1][0]
        return after

    def states(self, histories: Tensor) -> Tensor:
        """(B, L + 1, dim): states before each event of histories (B, L), and after the last; anything behind it."""
        first = self.table.weight[-1].expand(len(histories), 1, -1)
        states: Tensor = self.recurrent(torch.cat([first, self.table(histories.clamp(min=0))], dim=1))[0]
        return states

    def logits(self, states: Tensor) -> Tensor:
        """(..., V) of the next item."""
        scores: Tensor = self.out(states) @ self.table.weight[:-1].T + self.bias
        return scores

    def loss(self, states: Tensor, histories: Tensor, negatives: Tensor, log_q: Tensor) -> Tensor:
        """Mean negative log-likelihood of events, against negatives (S,) each expected exp(log_q) times."""
        at = histories >= 0
        own, state = histories[at], self.out(states[:, :-1][at])
        score = (state * self.table(own)).sum(dim=1) + self.bias[own]
        others = state @ self.table(negatives).T + self.bias[negatives] - log_q
        others = others.masked_fill(negatives[None, :] == own[:, None], float("-inf"))
        return fn.softplus(torch.logsumexp(others, dim=1) - score).mean()


class _Discriminator(nn.Module):
    """How real each event is, given the ones before."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            spectral_norm(nn.Linear(6 * width, hidden)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Linear(hidden, hidden)),
            nn.LeakyReLU(0.1),
            spectral_norm(nn.Linear(hidden, 1)),
        )

    def forward(self, items: Tensor, at: Tensor) -> Tensor:
        """(B, K) logits of the events at places (B, K) of items (B, L, w), zeros behind the last."""
        row = torch.arange(len(items))[:, None]
        padded = fn.pad(items, (0, 0, 2, 0))
        mean = (items.cumsum(dim=1) - items)[row, at] / at.clamp(min=1)[..., None]
        return self._judge(items[row, at], padded[row, at + 1], padded[row, at], mean)

    def of_next(self, items: Tensor, counts: Tensor, candidates: Tensor) -> Tensor:
        """(B, C) logits of candidates (B, C, w) after the ``counts`` (B,) events of items (B, L, w)."""
        padded = fn.pad(items, (0, 0, 2, 0))
        row = torch.arange(len(items))
        last, second = padded[row, counts + 1], padded[row, counts]
        mean = items.sum(dim=1) / counts.clamp(min=1)[:, None]
        last, second, mean = (part[:, None].expand_as(candidates) for part in (last, second, mean))
        return self._judge(candidates, last, second, mean)

    def _judge(self, item: Tensor, last: Tensor, second: Tensor, mean: Tensor) -> Tensor:
        seen = torch.cat([item, last, second, mean, item * last, item * mean], dim=-1)
        logits: Tensor = self.body(seen).squeeze(-1)
        return logits


class Gan:
    """A trained pair; see the module's docstring. Made by `fit_gan`.

    Items are the caller's codes; those outside ``items`` are passed over where they are read, and never drawn.

    Attributes:
        settings: it was made with. items: (V,) int64 codes that it can name, ascending.
        variety: of the state that was kept. checks: of variety, in the order of training, the first after warm-up.
    """

    def __init__(self, settings: GanSettings, items: Int64, counts: Floats) -> None:
        self.settings, self.items = settings, items
        self.checks: list[Variety] = []
        self.variety: Variety | None = None
        self._counts = torch.from_numpy(counts).float()
        self._generator = _Generator(self._counts, settings.dim)
        self._discriminator = _Discriminator(settings.dim + 1, settings.hidden)
        self._world = torch.zeros(len(items), settings.dim + 1)
        self._spread = 1.0

    def histories(self, lengths: Int64, rng: np.random.Generator, *, without: Int64 | None = None) -> Int64:
        """Draw histories.

        Args:
            lengths: (R,) events of each, above 0. without: item codes that must not be drawn.

        Returns:
            (R, max lengths) int64 codes, no item twice in a row, `NONE` behind the last.

        Raises:
            ValueError: a length is below 1 or above the number of items that may be drawn.
        """
        barred = torch.from_numpy(np.isin(self.items, without if without is not None else []))
        most = int((~barred).sum())
        if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= most:
            raise ValueError(f"expected lengths from 1 to {most}; got {lengths.min()} to {lengths.max()}")
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        order = np.argsort(-lengths, kind="stable")  # rows that end leave at the end
        drawn = np.full((len(lengths), int(lengths.max(initial=1))), NONE, np.int64)
        with torch.no_grad():
            state = self._generator.begin(len(lengths))
            had = barred.expand(len(lengths), -1).clone()
            for place in range(drawn.shape[1]):
                rows = int((lengths > place).sum())
                state, had = state[:rows], had[:rows]
                logits = self._generator.logits(state).masked_fill_(had, float("-inf"))
                pick = logits.add_(_gumbel(logits.shape, torch_rng)).argmax(dim=1)
                had[torch.arange(rows), pick] = True
                state = self._generator.step(self._generator.table(pick), state)
                drawn[order[:rows], place] = self.items[pick.numpy()]
        return drawn

    def realness(self, histories: Int64) -> Floats:
        """(R,) mean of the discriminator's logits over the events of histories (R, L); 0 where it knows none."""
        inside = torch.from_numpy(self._inside(histories))
        means = np.zeros(len(inside))
        with torch.no_grad():
            for first in range(0, len(inside), _JUDGED):
                part = inside[first : first + _JUDGED]
                every = torch.arange(part.shape[1]).expand(len(part), -1)
                logits = self._discriminator(self._seen(part), every) * (part >= 0)
                count = (part >= 0).sum(dim=1).clamp(min=1)
                means[first : first + _JUDGED] = (logits.sum(dim=1) / count).numpy()
        return means

    def screened(
        self,
        lengths: Int64,
        rng: np.random.Generator,
        *,
        without: Int64 | None = None,
        share: float | None = None,
    ) -> Int64:
        """As `histories`, the most real of ``1 / share`` drafts for each row; share as in the settings if None."""
        drafts = max(1, round(1 / (self.settings.share if share is None else share)))
        drawn = self.histories(np.repeat(lengths, drafts), rng, without=without)
        best = self.realness(drawn).reshape(-1, drafts).argmax(axis=1)
        kept: Int64 = drawn[np.arange(len(lengths)) * drafts + best]
        return kept

    def hard_negatives(
        self,
        histories: Int64,
        following: Int64,
        count: int,
        rng: np.random.Generator,
        *,
        share: float | None = None,
    ) -> Int64:
        """Likely next items that were wrong.

        Args:
            histories: (B, L) codes, `NONE` behind the last. following: (B,) or (B, K) what did come next.
            count: items wanted per history. share: of draws that the discriminator lets pass.

        Returns:
            (B, count) codes, the most real first, neither in the history nor what followed, distinct within a row.

        Raises:
            ValueError: so many items are not left beside the histories.
        """
        share = self.settings.share if share is None else share
        inside = torch.from_numpy(self._inside(histories))
        wrong = self._rows(np.asarray(following).reshape(len(histories), -1))
        had = _marked(inside, len(self.items)) | _marked(torch.from_numpy(wrong), len(self.items))
        left = int((~had).sum(dim=1).min()) if len(had) else count
        if not 1 <= count <= left:
            raise ValueError(f"count must lie from 1 to {left}, the items left beside a history; got {count}")
        torch_rng = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with torch.no_grad():
            counts = (inside >= 0).sum(dim=1)
            states = self._generator.states(inside)[torch.arange(len(inside)), counts]
            logits = self._generator.logits(states).masked_fill_(had, float("-inf"))
            # The largest of logits with Gumbel noise are draws without replacement (Kool et al., ICML 2019).
            drawn = (logits + _gumbel(logits.shape, torch_rng)).topk(min(round(count / share), left)).indices
            real = self._discriminator.of_next(self._seen(inside), counts, self._seen(drawn))
            kept = drawn.gather(1, real.topk(count).indices)
        negatives: Int64 = self.items[kept.numpy()]
        return negatives

    def _rows(self, codes: Int64) -> Int64:
        """Places of codes in ``items``; `NONE` where they are not among them."""
        at = np.minimum(np.searchsorted(self.items, codes), len(self.items) - 1)
        return np.where(self.items[at] == codes, at, NONE)

    def _inside(self, histories: Int64) -> Int64:
        """(B, L) places in ``items``, unknown items left out, `NONE` behind the last."""
        rows = self._rows(histories)
        order = np.argsort(rows == NONE, axis=1, kind="stable")
        return np.take_along_axis(rows, order, axis=1)

    def _seen(self, rows: Tensor) -> Tensor:
        """(..., w) items as the discriminator reads them, zeros for `NONE`."""
        return self._world[rows.clamp(min=0)] * (rows >= 0).unsqueeze(-1) / self._spread

    def _freeze(self) -> None:
        """Let the generator's table stay as it is: both read it from now on, the other one with popularity."""
        self._generator.table.weight.requires_grad_(False)
        table = self._generator.table.weight[:-1]
        popularity = torch.log(self._counts + 1)
        popularity = (popularity - popularity.mean()) / popularity.std().clamp(min=1e-6)
        self._spread = float(table.std())
        self._world = torch.cat([table, popularity[:, None] * self._spread], dim=1)

    def _written(self, state: Tensor, had: Tensor, temperature: float) -> Tensor:
        """(B, K, w) continuations, items forward and gradients of a softmax back."""
        picks = []
        for _ in range(self.settings.continued):
            logits = self._generator.logits(state).masked_fill(had, float("-inf"))
            soft = torch.softmax((logits + _gumbel(logits.shape)) / temperature, dim=1)
            pick = soft.detach().argmax(dim=1)
            had = had.scatter(1, pick[:, None], True)
            blurred = soft @ self._world
            item = blurred + (self._world[pick] - blurred).detach()
            picks.append(item)
            state = self._generator.step(item[:, :-1], state)
        return torch.stack(picks, dim=1) / self._spread


def fit_gan(
    codes: Int64,
    offsets: Int64,
    settings: GanSettings | None = None,
    *,
    items: Int64 | None = None,
    seed: int = 0,
) -> Gan:
    """Train a pair on users' histories; the same for the same seed. The global generator of torch is left alone.

    Args:
        codes: (E,) item codes, from 0. offsets: (R + 1,) where users begin and end; events in time order.
        settings: defaults if None. items: codes that can be named beside the most frequent ones.

    Raises:
        ValueError: fewer than two histories have two items to name.
    """
    settings = settings or GanSettings()
    counts = np.bincount(codes, minlength=int(np.max(items, initial=-1) if items is not None else -1) + 1)
    named = np.argsort(-counts, kind="stable")[: settings.items]
    named = np.union1d(named[counts[named] > 0], items if items is not None else named[:0]).astype(np.int64)
    known = np.isin(codes, named)
    ends = np.concatenate([[0], np.cumsum(known)])[offsets]
    histories = newest(codes[known], ends, settings.length)
    histories = histories[(histories != NONE).sum(axis=1) > 1]
    if len(histories) < 2:
        raise ValueError(f"expected at least two histories of two items; got {len(histories)}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        gan = Gan(settings, named, counts[named].astype(np.float64))
        _Fitting(gan, histories, np.random.default_rng(seed)).run()
    return gan


class _Fitting:
    """One training: likelihood, then both against each other, variety looked at in between."""

    def __init__(self, gan: Gan, histories: Int64, rng: np.random.Generator) -> None:
        self._gan, self._settings, self._rng, self._real = gan, gan.settings, rng, histories
        self._rows = torch.from_numpy(gan._inside(histories))
        self._per_pass = math.ceil(len(histories) / self._settings.batch_size)
        pool, few = len(gan.items), 2 * self._settings.negatives
        self._share = (gan._counts + 1) / (gan._counts + 1).sum() if pool > few else None

    def run(self) -> None:
        """Train; the pair is left in its best state."""
        self._warm_up()
        self._gan._freeze()
        kept = self._checked({})
        steps = self._steps(self._settings.steps)
        every = max(1, steps // self._settings.checks)
        judged, writing = self._optimisers()
        for step in range(steps):
            share = step / max(steps - 1, 1)
            temperature = self._settings.hot * (self._settings.cold / self._settings.hot) ** share
            self._contest(judged, writing, temperature)
            if (step + 1) % every == 0:
                kept = self._checked(kept)
                if all(check.collapsed for check in self._gan.checks[-2:]):
                    break  # it has found its trick and will not unlearn it
        self._gan._generator.load_state_dict(kept)
        self._refine()
        self._gan._generator.eval().requires_grad_(False)
        self._gan._discriminator.eval().requires_grad_(False)

    def _steps(self, most: int) -> int:
        return min(most, math.ceil(self._settings.passes * self._per_pass))

    def _optimisers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        generator = [part for part in self._gan._generator.parameters() if part.requires_grad]
        return (
            torch.optim.Adam(
                self._gan._discriminator.parameters(), self._settings.discriminator_rate, (0.5, 0.9)
            ),
            torch.optim.Adam(generator, self._settings.generator_rate, (0.5, 0.9)),
        )

    def _batch(self) -> Tensor:
        return self._rows[torch.randint(len(self._rows), (min(self._settings.batch_size, len(self._rows)),))]

    def _negatives(self) -> tuple[Tensor, Tensor]:
        """Negatives (S,) of a step and the log of how often each is expected among them."""
        items, count = len(self._gan.items), self._settings.negatives
        if self._share is None:
            return torch.arange(items), torch.zeros(items)
        drawn = torch.multinomial(self._share, count, replacement=True)
        return drawn, torch.log(self._share[drawn] * count)

    def _warm_up(self) -> None:
        generator, steps = self._gan._generator, self._steps(self._settings.warmup_steps)
        optimiser = torch.optim.Adam(generator.parameters(), self._settings.warmup_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, max(steps, 1))
        for _ in range(steps):
            batch = self._batch()
            loss = generator.loss(generator.states(batch), batch, *self._negatives())
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(generator.parameters(), 1.0)
            optimiser.step()
            schedule.step()

    def _contest(
        self, judged: torch.optim.Optimizer, writing: torch.optim.Optimizer, temperature: float
    ) -> None:
        """One step of either: continue beginnings of real histories, judge real and written events."""
        gan, batch = self._gan, self._batch()
        lengths = (batch >= 0).sum(dim=1)
        room = (lengths - self._settings.continued).clamp(min=0)
        begin = (torch.rand(len(batch)) * (room + 1)).long() * (torch.rand(len(batch)) > 0.25)
        row = torch.arange(len(batch))
        states = gan._generator.states(batch)
        before = torch.where(torch.arange(batch.shape[1]) < begin[:, None], batch, NONE)
        written = gan._written(states[row, begin], _marked(before, len(gan.items)), temperature)
        # Room for continuations that run past the longest history; what lies there counts on neither side.
        real = fn.pad(gan._seen(batch), (0, 0, 0, self._settings.continued))
        at = begin[:, None] + torch.arange(self._settings.continued)
        inside = at < lengths[:, None]
        fake = real.scatter(1, at[..., None].expand_as(written), written)
        on_real, on_fake = (gan._discriminator(part, at)[inside] for part in (real, fake.detach()))
        told = fn.relu(1 - on_real).mean() + fn.relu(1 + on_fake).mean()
        judged.zero_grad()
        told.backward()  # type: ignore[no-untyped-call]
        judged.step()
        verdict = -gan._discriminator(fake, at)[inside].mean()
        loss = verdict + self._settings.likelihood * gan._generator.loss(states, batch, *self._negatives())
        writing.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(gan._generator.parameters(), 1.0)
        writing.step()

    def _refine(self) -> None:
        """Teach the discriminator on whole histories of the generator as it stays, by logistic loss.

        In the contest it learned what the generator did wrong a moment ago. The logit of one that learned to the end
        is the log of how much likelier an event is among real ones, which is what screening needs (Azadi, Olsson,
        Darrell, Goodfellow and Odena, Discriminator rejection sampling, ICLR 2019, arXiv:1810.06758).
        """
        gan, judge = self._gan, self._gan._discriminator
        steps = self._steps(self._settings.refining_steps)
        if not steps:
            return
        some = self._rng.choice(len(self._real), min(_REFINED_ON, len(self._real)), replace=False)
        drawn = torch.from_numpy(
            gan._inside(gan.histories((self._real[some] != NONE).sum(axis=1), self._rng))
        )
        optimiser = torch.optim.Adam(judge.parameters(), self._settings.discriminator_rate)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
        for _ in range(steps):
            written = drawn[torch.randint(len(drawn), (min(self._settings.batch_size, len(drawn)),))]
            loss = torch.zeros(())
            for histories, sign in ((self._batch(), -1.0), (written, 1.0)):
                every = torch.arange(histories.shape[1]).expand(len(histories), -1)
                logits = judge(gan._seen(histories), every)[histories >= 0]
                loss = loss + fn.softplus(sign * logits).mean()
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()

    def _checked(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The generator to keep: as it is, unless it has collapsed."""
        real = self._real[self._rng.choice(len(self._real), min(_COMPARED, len(self._real)), replace=False)]
        found = variety(self._gan.histories((real != NONE).sum(axis=1), self._rng), real)
        self._gan.checks.append(found)
        if found.collapsed and kept:
            return kept
        self._gan.variety = found
        return copy.deepcopy(self._gan._generator.state_dict())


def _marked(rows: Tensor, items: int) -> Tensor:
    """(B, V) bool: which items histories (B, L) of places hold."""
    marks = torch.zeros(len(rows), items + 1, dtype=torch.bool)
    return marks.scatter_(1, torch.where(rows >= 0, rows, items), True)[:, :-1]


def _gumbel(shape: torch.Size, generator: torch.Generator | None = None) -> Tensor:
    return -torch.empty(shape).exponential_(generator=generator).clamp(min=_TINY).log()
