"""What an attack does to a model that learns along a stream.

A model learns from clean history. Then the newest window arrives, once as it is and once with fake users in it, and
the model is fine-tuned on it as the live learner does. The users of what follows ask, and their lists are compared:
how often do the targets stand in them, and what are the lists still worth?
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
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
from training.config import TrainingSettings
from training.data import Sequences
from training.metrics import ndcg, ranks_of

_ASKED = 2000
_TAIL, _HEAD = (
    0.25,
    0.05,
)  # unpopular: the least frequent quarter of the items; head: the most frequent twentieth


@dataclass(frozen=True)
class Scenario:
    """An attack, and the stream it meets.

    Attributes:
        kind: a name of `training.attacks.ATTACKS`. size: fake users as a share of the honest ones.
        targets: how many items. popular: targets from the head instead of the tail.
        history, window: shares of the stream that are clean history, and the window with the attack.
        seed: of the targets, the fake users and the training.
    """

    kind: str = "bandwagon"
    size: float = 0.01
    targets: int = 5
    popular: bool = False
    history: float = 0.85
    window: float = 0.05
    seed: int = 0


@dataclass(frozen=True)
class Lists:
    """Figures of one model's answers, and the lists themselves (Q, 10)."""

    figures: dict[str, float]
    top: Int64


def run(
    corpus: Corpus,
    settings: TrainingSettings,
    scenario: Scenario,
    cache: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Attack and compare; the clean model and the honest window are kept in ``cache`` for the next attack.

    Returns:
        ``before`` (clean history), ``clean`` (and the honest window), ``poisoned`` (and the window with the attack),
        each ``hr@10``, ``hr@50``, ``exposure@10`` of the targets and ``ndcg@10``; ``lift`` = poisoned over clean
        exposure (null where the clean one is 0) and ``gain``, their difference; ``overlap@10`` of clean and poisoned
        lists.

    Raises:
        DatasetError: the stream is too short for the scenario.
    """
    low = round(scenario.history * len(corpus))
    high = round((scenario.history + scenario.window) * len(corpus))
    asked = np.flatnonzero((corpus.arrival >= high) & corpus.has_history & ~corpus.repeats())
    queries = sample(asked, _ASKED, scenario.seed)
    if not len(queries) or low < 2 or high - low < 1:
        raise DatasetError(
            f"{corpus.name}: nothing is left to ask behind the window; lower history or window"
        )
    rng = np.random.default_rng(scenario.seed)
    targets = choose_targets(corpus, corpus.arrival < low, scenario, rng)
    learner = StreamLearner(corpus, settings.model_copy(update={"seed": scenario.seed}), cache, tell=tell)
    told = f"{learner.settings.model_dump_json()}{corpus.name}{len(corpus)}{low}{high}"
    kept = cache / f"attacked-{hashlib.sha256(told.encode()).hexdigest()[:16]}.pt"
    if kept.is_file():
        before, clean = torch.load(kept, weights_only=True)
        tell("the clean model is taken from the last run")
    else:
        before = learner.first(low)[0].weights
        clean = learner.go_on(learner.trainer(before), low, high, 0).weights
        torch.save((before, clean), kept)
    fakes = _fakes(corpus, targets, scenario, low, high, rng)
    tell(f"{scenario.kind}: {len(fakes)} fake users, {len(fakes.items)} events")
    poisoned = learner.go_on(learner.trainer(before), low, high, 0, more=fakes).weights
    found = {
        name: lists_of(learner.scorer(weights, learner.table(upto)), corpus, queries, targets)
        for name, weights, upto in (
            ("before", before, low),
            ("clean", clean, high),
            ("poisoned", poisoned, high),
        )
    }
    exposed, honest = (found[name].figures["exposure@10"] for name in ("poisoned", "clean"))
    return {
        "dataset": corpus.name,
        **asdict(scenario),
        "target_items": [corpus.item_ids[code] for code in targets],
        "fake_users": len(fakes),
        "fake_events": len(fakes.items),
        "queries": len(queries),
        **{name: lists.figures for name, lists in found.items()},
        "lift": exposed / honest if honest else None,
        "gain": exposed - honest,
        "overlap@10": overlap(found["clean"].top, found["poisoned"].top),
    }


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


def _fakes(
    corpus: Corpus, targets: Int64, scenario: Scenario, low: int, high: int, rng: np.random.Generator
) -> Sequences:
    known = corpus.arrival < low
    hashes = np.arange(1, corpus.num_items + 1, dtype=np.uint64)
    view = View(rows_of(corpus, known), corpus.codes[known], hashes, corpus.category_pairs)
    times = corpus.sequences.times[np.argsort(corpus.arrival)]
    users = max(1, round(scenario.size * len(view.lengths)))
    budget = Budget(users, int(times[low]), max(int(times[high - 1]), int(times[low]) + 1))
    return ATTACKS[scenario.kind]().poison(view, targets, budget, rng).sequences


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
