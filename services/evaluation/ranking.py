"""Asks a recommender the queries of a split and sums up its answers: quality, reach, segments, confidence.

Every item of the catalogue is ranked. Two readings of each query are kept:

unseen  the items of the user's history are taken out, and only events with an item new to the user are asked:
        what a service that recommends new things is judged by. The headline unless told otherwise.
all     nothing is taken out and every event is asked: repeats count.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.evaluation.corpus import Bools, Corpus, Int64, Split
from training.metrics import (
    Ranks,
    bootstrap,
    coverage,
    gini,
    hit_rate,
    mrr,
    ndcg,
    novelty,
    ranks_of,
    reciprocal_log,
)

CUTS = (5, 10, 20)
TOP = 10
NEW_USER_EVENTS = 5
HEAD_SHARE = 0.8  # of the training events: the most popular items that make up so much are the head
_SCORES_AT_ONCE = 30_000_000


class Answering(Protocol):
    """What can be asked."""

    def scores(self, queries: Int64) -> Tensor:
        """(B, N) float: a score of every item for each query, from its history alone."""


class Recommender(Answering, Protocol):
    """What is compared."""

    name: str

    def fit(self, corpus: Corpus, split: Split) -> None:
        """Learn from the split's training events; choose settings on its validation queries only."""


@dataclass(frozen=True)
class Answers:
    """Ranks of the targets, and the recommended lists, of one reading."""

    queries: Int64
    ranks: Ranks
    top: Int64  # (Q, TOP) item codes


def ask(
    recommender: Answering,
    corpus: Corpus,
    queries: Int64,
    *,
    unseen: bool,
    among: Bools | None = None,
    progress: Callable[[float], None] | None = None,
) -> Answers:
    """Let a recommender answer.

    Args:
        queries: (Q,) positions of events.
        unseen: the reading (see the module's docstring).
        among: (N,) rank only these items; by default all.
        progress: told the share that is done.
    """
    if unseen:
        queries = queries[~corpus.repeats()[queries]]
    ranks, tops = [], []
    size = max(1, min(512, _SCORES_AT_ONCE // corpus.num_items))
    for at in range(0, len(queries), size):
        part = queries[at : at + size]
        scores = recommender.scores(part).float()
        excluded = corpus.seen(part) if unseen else np.zeros((len(part), corpus.num_items), bool)
        if among is not None:
            excluded |= ~among
        out = torch.from_numpy(excluded)
        ranks.append(ranks_of(scores, torch.from_numpy(corpus.codes[part]), out))
        allowed = scores.masked_fill(out, float("-inf"))
        tops.append(torch.topk(allowed, min(TOP, corpus.num_items), dim=1).indices.numpy())
        if progress:
            progress(min(1.0, (at + size) / len(queries)))
    empty = np.zeros((0, TOP), np.int64)
    return Answers(queries, np.concatenate(ranks or [np.zeros(0)]), np.concatenate(tops or [empty]))


def validated(recommender: Answering, corpus: Corpus, queries: Int64, *, unseen: bool) -> float:
    """NDCG@10 on validation queries: what settings and epochs are chosen by."""
    return ndcg(ask(recommender, corpus, queries, unseen=unseen).ranks)


def figures(
    answers: Answers, corpus: Corpus, split: Split, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """All metrics of one reading, by name; intervals are 95% bootstrap intervals over users."""
    ranks, users = answers.ranks, corpus.rows[answers.queries]
    counts = np.bincount(corpus.codes[split.train], minlength=corpus.num_items)
    found: dict[str, Any] = {"queries": len(ranks), "users": len(np.unique(users))}
    for k in CUTS:
        found |= {f"hr@{k}": hit_rate(ranks, k), f"ndcg@{k}": ndcg(ranks, k), f"mrr@{k}": mrr(ranks, k)}
    found[f"ndcg@{TOP}_ci"] = bootstrap(reciprocal_log(ranks, TOP), users, resamples, seed)
    found[f"hr@{TOP}_ci"] = bootstrap((ranks <= TOP).astype(float), users, resamples, seed)
    found[f"coverage@{TOP}"] = coverage(answers.top, corpus.num_items)
    found[f"gini@{TOP}"] = gini(answers.top, corpus.num_items)
    found[f"novelty@{TOP}"] = novelty(answers.top, counts)
    found["segments"] = {
        name: {"queries": int(mask.sum()), "hr@10": hit_rate(ranks[mask]), "ndcg@10": ndcg(ranks[mask])}
        for name, mask in segments(answers.queries, corpus, split).items()
    }
    return found


def segments(queries: Int64, corpus: Corpus, split: Split) -> Mapping[str, Bools]:
    """Masks over queries: users with short histories, items by how often training saw them."""
    counts = np.bincount(corpus.codes[split.train], minlength=corpus.num_items)
    order = np.argsort(-counts, kind="stable")
    head = np.zeros(corpus.num_items, bool)
    upto = np.searchsorted(np.cumsum(counts[order]), HEAD_SHARE * counts.sum()) + 1
    head[order[:upto]] = True
    target = corpus.codes[queries]
    history = queries - corpus.starts[queries]
    return {
        f"new users (at most {NEW_USER_EVENTS} events)": history <= NEW_USER_EVENTS,
        "new items (never trained on)": counts[target] == 0,
        f"head items ({HEAD_SHARE:.0%} of events)": head[target],
        "tail items": ~head[target] & (counts[target] > 0),
    }


def by_history(
    answers: Answers, corpus: Corpus, edges: Sequence[int] = (1, 2, 3, 5, 10, 20, 50, 100)
) -> list[dict[str, Any]]:
    """NDCG@10 and HR@10 against the number of known events."""
    history = answers.queries - corpus.starts[answers.queries]
    found = []
    for low, high in zip(edges, [*edges[1:], 1 << 30], strict=True):
        mask: NDArray[np.bool_] = (history >= low) & (history < high)
        if mask.any():
            ranks = answers.ranks[mask]
            found.append(
                {"from": low, "queries": int(mask.sum()), "hr@10": hit_rate(ranks), "ndcg@10": ndcg(ranks)}
            )
    return found
