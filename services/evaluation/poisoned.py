"""What an attack does to a model that learns along a stream, and what a defence makes of it.

A model learns from clean history. Then the newest window arrives, once as it is and once with fake users in it, and
the model is fine-tuned on it as the live learner does, with or without defences. The users of what follows ask, and
their lists are compared: how often do the targets stand in them, and what are the lists still worth?
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.datasets import DatasetError
from services.evaluation.corpus import Bools, Corpus, Int64, rows_of, sample
from services.evaluation.ours import SequenceScorer
from services.evaluation.ranking import TOP
from services.evaluation.streamed import StreamLearner
from training.attacks import ATTACKS, Budget, View
from training.augment import augmented
from training.config import AdversarialConfig, InfluenceConfig, TrainingSettings
from training.data import Sequences, concat
from training.influence import limited
from training.metrics import ndcg, ranks_of
from training.progress import PopularityCounts
from training.trust.detector import Detector
from training.trust.screening import Screen, screen
from training.trust.simulation import KINDS, fitted_detector

_ASKED = 2000
_TAIL, _HEAD = (
    0.25,
    0.05,
)  # unpopular: the least frequent quarter of the items; head: the most frequent twentieth
_POWER = 0.05  # of the honest users, those with the most events in the window
_LATER = {
    *("window_lr", "epochs_per_window", "replay_ratio", "replay_windows"),
    *("trust", "gate", "adversarial", "gan"),
}
_LEARNED_WINDOWS = 8  # before the attacked one, of its size, that the detector learns from


@dataclass(frozen=True)
class Scenario:
    """An attack, and the stream it meets.

    Attributes:
        kind: a name of `training.attacks.ATTACKS`. size: fake users as a share of the honest ones.
        targets: how many items. popular: targets from the head instead of the tail.
        history, window: shares of the stream that are clean history, and the window with the attack.
        seed: of the targets, the fake users and the training.
        scratch: the attack meets a training from scratch on history and window, and not a fine-tuning on the window.
    """

    kind: str = "bandwagon"
    size: float = 0.01
    targets: int = 5
    popular: bool = False
    history: float = 0.85
    window: float = 0.05
    seed: int = 0
    scratch: bool = False


@dataclass(frozen=True)
class Lists:
    """Figures of one model's answers, and the lists themselves (Q, 10)."""

    figures: dict[str, float]
    top: Int64


@dataclass(frozen=True)
class Learned:
    """What a window left: the weights, what was thought of its users, CPU seconds and steps of learning it."""

    weights: dict[str, Tensor]
    held: float | None  # share of the honest users in quarantine; None = nobody was screened
    seconds: float
    steps: int
    screen: Screen | None = None  # not kept on disk


class Stage:
    """Everything about a scenario but the attack: the stream's moments, who asks, the clean model, the defences.

    Args:
        settings: of training, with its defences as they are switched. scenario: its `kind` is left out of what the
            detector learns from. cache: folder for what can be used again. tell: told of progress.

    Raises:
        DatasetError: the stream is too short for the scenario.
    """

    def __init__(
        self,
        corpus: Corpus,
        settings: TrainingSettings,
        scenario: Scenario,
        cache: Path,
        tell: Callable[[str], None],
    ) -> None:
        self.corpus, self.scenario, self._cache, self._tell = corpus, scenario, cache, tell
        self.low = round(scenario.history * len(corpus))
        self.high = round((scenario.history + scenario.window) * len(corpus))
        asked = np.flatnonzero((corpus.arrival >= self.high) & corpus.has_history & ~corpus.repeats())
        self.queries = sample(asked, _ASKED, scenario.seed)
        if not len(self.queries) or self.low < 2 or self.high - self.low < 1:
            raise DatasetError(
                f"{corpus.name}: nothing is left to ask behind the window; lower history or window"
            )
        rng = np.random.default_rng(scenario.seed)
        self.targets = choose_targets(corpus, corpus.arrival < self.low, scenario, rng)
        self.learner = StreamLearner(
            corpus, settings.model_copy(update={"seed": scenario.seed}), cache, tell=tell
        )
        self.settings = self.learner.settings
        changed = self.settings.model_dump_json(exclude_defaults=True)
        self.told = f"{changed}{corpus.name}{len(corpus)}{self.low}{self.high}"  # what all results depend on
        self._half_life_ms = settings.popularity_half_life_h * 3.6e6

    def before(self) -> dict[str, Tensor]:
        """Weights of the model that learned from the clean history."""
        return clean_model(self.corpus, self.settings, self.low, self._cache, self._tell)

    def after(self, fakes: Sequences | None) -> Learned:
        """The window learned, with fake users in it or none."""
        seen: list[Screen] = []

        def defended(rows: Sequences) -> Sequences:
            whole = rows if fakes is None else concat([rows, fakes])
            if self.settings.trust.enabled and (detector := self.detector()) is not None:
                window = self.learner.window_rows(self.low, self.high)
                window = window if fakes is None else concat([window, fakes])
                seen.append(screen(window, self.past(self.low), detector))
                whole = by_window(whole, window, seen[0])
            if self.scenario.scratch:
                return whole
            whole = augmented(whole, self.settings.gan, self.scenario.seed)
            return limited(whole, self.past(self.low), self.settings.influence)

        if self.scenario.scratch:
            fitted = self.learner.retrained(self.high, self.settings.initial_epochs, defended)
        else:
            trainer = self.learner.trainer(self.before())
            fitted = self.learner.go_on(trainer, self.low, self.high, 0, defended)
        honest = len(seen[0].trust) - (0 if fakes is None else len(fakes)) if seen else 0
        held = float(seen[0].quarantined[:honest].mean()) if seen else None
        return Learned(fitted.weights, held, fitted.seconds, fitted.steps, seen[0] if seen else None)

    def lists(self, weights: dict[str, Tensor], upto: int) -> Lists:
        """What the users who ask are shown by a model."""
        scorer = self.learner.scorer(weights, self.learner.table(upto))
        return lists_of(scorer, self.corpus, self.queries, self.targets)

    def past(self, upto: int) -> PopularityCounts:
        """How often items were had before a moment."""
        counts = PopularityCounts(self._half_life_ms)
        known = self.corpus.arrival < upto
        counts.add(self.corpus.sequences.items[known], self.corpus.sequences.times[known])
        return counts

    def detector(self) -> Detector | None:
        """From the windows before the attacked one, with every simulated attack but the scenario's own."""
        kinds = [kind for kind in KINDS if kind != self.scenario.kind]
        size = self.high - self.low
        cuts = [self.low - size * back for back in range(_LEARNED_WINDOWS, -1, -1)]
        cuts = [cut for cut in cuts if cut > 0]
        trust = self.settings.trust.model_dump_json(exclude_defaults=True)
        told = f"{self.corpus.name}{len(self.corpus)}{cuts}{kinds}{trust}{self._half_life_ms}"
        kept = self.file("detector", f"{told}{self.scenario.seed}", ".safetensors")
        if kept.is_file():
            return Detector.load(kept)
        windows = [self.learner.window_rows(low, high) for low, high in pairwise(cuts)]
        made = fitted_detector(
            windows, self.past(cuts[0]), self.settings.trust, kinds=kinds, seed=self.scenario.seed
        )
        if made is None:
            self._tell("too few windows before the attacked one for a detector: nobody is doubted")
        else:
            made.save(kept)
        return made

    def fakes(self) -> Sequences:
        """The scenario's fake users, every event of theirs in the window; kept, as some take a minute to make."""
        corpus, scenario = self.corpus, self.scenario
        kept = self.file("fakes", f"{scenario}{corpus.name}{len(corpus)}", ".npz")
        if kept.is_file():
            with np.load(kept, allow_pickle=False) as arrays:
                return Sequences(**arrays)
        known = corpus.arrival < self.low
        hashes = np.arange(1, corpus.num_items + 1, dtype=np.uint64)
        view = View(rows_of(corpus, known), corpus.codes[known], hashes, corpus.category_pairs)
        times = corpus.sequences.times[np.argsort(corpus.arrival)]
        first = int(times[self.low])
        users = max(1, round(scenario.size * len(view.lengths)))
        budget = Budget(users, first, max(int(times[self.high - 1]), first + 1))
        rng = np.random.default_rng([scenario.seed, 1])
        found = ATTACKS[scenario.kind]().poison(view, self.targets, budget, rng).sequences
        made = replace(found, target_from=np.zeros_like(found.target_from))
        np.savez(kept, **{name: value for name, value in vars(made).items() if value is not None})
        return made

    def file(self, what: str, told: str, suffix: str) -> Path:
        """Where something that depends on all that is told is kept."""
        self._cache.mkdir(parents=True, exist_ok=True)
        return self._cache / f"{what}-{hashlib.sha256(told.encode()).hexdigest()[:16]}{suffix}"

    def honest(self) -> Learned:
        """The honest window learned; kept for the next attack."""
        # The detector depends on what it was not told of.
        told = self.told + (self.scenario.kind if self.settings.trust.enabled else "")
        told += "scratch" if self.scenario.scratch else ""
        kept = self.file("window", told, ".pt")
        if kept.is_file():
            return Learned(**torch.load(kept, weights_only=True))
        learned = self.after(None)
        _save({name: value for name, value in vars(learned).items() if name != "screen"}, kept)
        return learned


def run(
    corpus: Corpus,
    settings: TrainingSettings,
    scenario: Scenario,
    cache: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Attack and compare; what another attack or defence can use again is kept in ``cache``, and so is the result.

    Returns:
        ``before`` (clean history), ``clean`` (and the honest window), ``poisoned`` (and the window with the attack),
        each ``hr@10``, ``hr@50``, ``exposure@10`` of the targets and ``ndcg@10``; ``lift`` = poisoned over clean
        exposure (null where the clean one is 0) and ``gain``, their difference; ``overlap@10`` of clean and poisoned
        lists; ``detector`` = what was thought of the window's users, where they were screened.

    Raises:
        DatasetError: the stream is too short for the scenario.
    """
    stage = Stage(corpus, settings, scenario, cache, tell)
    told = json.dumps(asdict(scenario)) + stage.told
    kept = stage.file("attack", told, ".json")
    if kept.is_file():
        report: dict[str, Any] = json.loads(kept.read_text())
        tell("taken from the last run: nothing it depends on has changed")
        return report
    clean = stage.honest()
    fakes = stage.fakes()
    tell(f"{scenario.kind}: {len(fakes)} fake users, {len(fakes.items)} events")
    poisoned = stage.after(fakes)
    found = {
        name: stage.lists(weights, upto)
        for name, weights, upto in (
            ("before", stage.before(), stage.low),
            ("clean", clean.weights, stage.high),
            ("poisoned", poisoned.weights, stage.high),
        )
    }
    exposed, honest = (found[name].figures["exposure@10"] for name in ("poisoned", "clean"))
    report = {
        "dataset": corpus.name,
        **asdict(scenario),
        "target_items": [corpus.item_ids[code] for code in stage.targets],
        "fake_users": len(fakes),
        "fake_events": len(fakes.items),
        "queries": len(stage.queries),
        **{name: lists.figures for name, lists in found.items()},
        "lift": exposed / honest if honest else None,
        "gain": exposed - honest,
        "overlap@10": overlap(found["clean"].top, found["poisoned"].top),
    }
    if poisoned.screen is not None:
        report["detector"] = detected(poisoned.screen, stage.learner.window_rows(stage.low, stage.high))
    kept.write_text(json.dumps(report))
    return report


def detected(screened: Screen, honest: Sequences) -> dict[str, Any]:
    """How well fake users were told from the honest ones, whose rows stand first.

    Returns:
        ``auc`` of the scores; ``caught``, the share of fakes in quarantine, ``precision`` of quarantine;
        ``false_quarantine`` of honest users and of the twentieth with most events; mean trust of both sides, and of
        honest users by how much they did.
    """
    fake = np.arange(len(screened.trust)) >= len(honest)
    held = screened.quarantined
    events = np.bincount(
        np.repeat(np.arange(len(honest)), np.diff(honest.offsets))[honest.new_events()], minlength=len(honest)
    )
    power = events >= np.quantile(events, 1 - _POWER)
    return {
        "auc": auc(screened.scores, fake),
        "caught": float(held[fake].mean()),
        "precision": float(fake[held].mean()) if held.any() else 1.0,
        "honest_users": len(honest),
        "false_quarantine": float(held[~fake].mean()),
        "false_quarantine_power": float(held[: len(honest)][power].mean()),
        "honest_trust": float(screened.trust[~fake].mean()),
        "fake_trust": float(screened.trust[fake].mean()),
        "honest_trust_by_events": _by_events(screened.trust[: len(honest)], events),
    }


def _by_events(trust: NDArray[np.float32], events: Int64) -> dict[str, float]:
    """Mean trust of users with few, some and many events in the window (thirds)."""
    low, high = np.quantile(events, [1 / 3, 2 / 3])
    third = (events > low).astype(np.int64) + (events > high)
    return {
        f"{name} events": float(trust[third == place].mean())
        for place, name in enumerate((f"up to {low:.0f}", f"up to {high:.0f}", "more"))
        if (third == place).any()
    }


def auc(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Probability that a positive scores above a negative, ties counting half (the Mann-Whitney statistic)."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    found = int(positive.sum())
    wins = middle[place][positive].sum() - found * (found + 1) / 2
    return float(wins / max(found * (len(scores) - found), 1))


def by_window(rows: Sequences, window: Sequences, found: Screen) -> Sequences:
    """Rows of users with the trust that the screen of a window gave them; without the quarantined."""
    order = np.argsort(window.users)
    place = np.minimum(np.searchsorted(window.users[order], rows.users), len(order) - 1)
    place = order[place]
    trust = np.where(window.users[place] == rows.users, found.trust[place], np.float32(1))
    trusted = replace(rows, trust=np.minimum(rows.trust, trust).astype(np.float32))
    return trusted.take(np.flatnonzero(trust > 0))


def _save(weights: Any, kept: Path) -> None:
    kept.parent.mkdir(parents=True, exist_ok=True)
    temporary = kept.with_suffix(".tmp")
    torch.save(weights, temporary)
    temporary.replace(kept)


def clean_model(
    corpus: Corpus, settings: TrainingSettings, upto: int, cache: Path, tell: Callable[[str], None]
) -> dict[str, Tensor]:
    """Weights learned from all before a moment, without any defence; kept in a file named by what they depend on.

    Every attack and every defence begins from these, so that a table of them costs one training.
    """
    plain = settings.model_copy(update={"adversarial": AdversarialConfig(enabled=False)})
    plain = plain.model_copy(update={"influence": InfluenceConfig()})
    learner = StreamLearner(corpus, plain, cache, tell=tell)
    # What belongs to windows, to judging and to the live learner has no say in a training from scratch.
    told = learner.settings.model_dump_json(exclude_defaults=True, exclude=_LATER)
    told += f"{corpus.name}{len(corpus)}{upto}"
    kept = cache / f"clean-{hashlib.sha256(told.encode()).hexdigest()[:16]}.pt"
    if kept.is_file():
        weights: dict[str, Tensor] = torch.load(kept, weights_only=True)
        return weights
    tell(f"learning the clean model: {settings.initial_epochs} passes over {upto:,} events")
    weights = learner.retrained(upto, settings.initial_epochs).weights
    _save(weights, kept)
    return weights


def choose_targets(corpus: Corpus, known: Bools, scenario: Scenario, rng: np.random.Generator) -> Int64:
    """Item codes of the targets: from those that known events (E,) name least, or most."""
    counts = np.bincount(corpus.codes[known], minlength=corpus.num_items)
    order = np.argsort(counts, kind="stable")
    order = order[counts[order] > 0]
    share = round((_HEAD if scenario.popular else _TAIL) * len(order))
    pool = order[-max(share, 1) :] if scenario.popular else order[: max(share, 1)]
    if len(pool) < scenario.targets:
        raise DatasetError(
            f"{corpus.name}: {scenario.targets} targets are asked for, {len(pool)} items qualify; ask for fewer"
        )
    return np.sort(rng.choice(pool, scenario.targets, replace=False))


def lists_of(scorer: SequenceScorer, corpus: Corpus, queries: Int64, targets: Int64) -> Lists:
    """What the users of the queries are shown, new items only, and where the targets stand.

    ``hr@k`` is the mean over targets and users who did not have them; ``exposure@10`` the share of all places shown.
    """
    asked, hits10, hits50, ranks, tops = 0, 0, 0, [], []
    for at in range(0, len(queries), 512):
        part = queries[at : at + 512]
        seen = torch.from_numpy(corpus.seen(part))
        scores: Tensor = scorer.scores(part).float()
        ranks.append(ranks_of(scores, torch.from_numpy(corpus.codes[part]), seen))
        scores = scores.masked_fill(seen, float("-inf"))
        tops.append(torch.topk(scores, TOP, dim=1).indices.numpy())
        for target in targets.tolist():
            free = ~seen[:, target]
            ahead = (scores[free] > scores[free, target, None]).sum(dim=1)
            asked += int(free.sum())
            hits10 += int((ahead < TOP).sum())
            hits50 += int((ahead < 50).sum())
    figures = {
        "hr@10": hits10 / max(asked, 1),
        "hr@50": hits50 / max(asked, 1),
        "exposure@10": hits10 / (TOP * len(queries)),
        "ndcg@10": ndcg(np.concatenate(ranks)),
    }
    return Lists(figures, np.concatenate(tops))


def overlap(one: NDArray[np.int64], other: NDArray[np.int64]) -> float:
    """Mean share of items that two lists (Q, K) of each query have in common."""
    both = (one[:, :, None] == other[:, None, :]).any(axis=2)
    return float(both.mean())
