"""Who gains and who loses: figures by groups of users and of items, and whether a change hurts one of them.

Users are grouped by how much is known of them, items by how often they were had and by category. Datasets here carry
no demographic columns; a column of labels per query is all that another grouping needs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.evaluation.corpus import Bools, Corpus, Int64
from services.evaluation.ranking import Answers
from training.metrics import hit_rate, ndcg

TOLERANCE = 0.05  # share of a group's NDCG@10 that a change may cost
_HEAD = 0.2  # of the items, the most frequent
_CATEGORIES = 8  # with the most queries; the rest is one group
_LEAST = 200  # queries below which a group's figure is noise, and no warning


@dataclass(frozen=True)
class Grouping:
    """Labels (Q,) of queries: places in ``names``, -1 = in no group."""

    names: list[str]
    labels: Int64


def groupings(corpus: Corpus, queries: Int64, known: Bools) -> dict[str, Grouping]:
    """Groups of the queries by their user's activity, and by popularity and category of what is asked for.

    Args:
        queries: (Q,) positions of events. known: (E,) events that count as known.
    """
    length = queries - corpus.starts[queries]
    low, high = np.quantile(length, [1 / 3, 2 / 3])
    activity = (length > low).astype(np.int64) + (length > high)
    counts = np.bincount(corpus.codes[known], minlength=corpus.num_items)
    order = np.argsort(-counts, kind="stable")
    kind = np.ones(corpus.num_items, np.int64)
    kind[order[: round(_HEAD * (counts > 0).sum())]] = 0
    kind[counts == 0] = 2
    return {
        # Named alike whoever is asked, so that seeds can be compared.
        "activity of the user": Grouping(
            ["least active third", "middle third", "most active third"], activity
        ),
        "popularity of the item": Grouping(
            ["head (a fifth of the items)", "tail", "new"], kind[corpus.codes[queries]]
        ),
        "category of the item": _categories(corpus, queries),
    }


def _categories(corpus: Corpus, queries: Int64) -> Grouping:
    """By the first category of the item; the largest ones, and all others as one."""
    first = [kept[0] if kept else "" for kept in corpus.categories]
    asked = np.array([first[code] for code in corpus.codes[queries].tolist()])
    names, counts = np.unique(asked[asked != ""], return_counts=True)
    largest = names[np.argsort(-counts, kind="stable")][:_CATEGORIES].tolist()
    place = {name: number for number, name in enumerate(largest)}
    other = len(largest)
    labels = np.array([place.get(name, other) if name else -1 for name in asked.tolist()], np.int64)
    return Grouping([*largest, "others"], labels)


def by_group(answers: Answers, found: Mapping[str, Grouping]) -> dict[str, dict[str, dict[str, float]]]:
    """Queries, NDCG@10 and HR@10 of every group that has queries."""
    report: dict[str, dict[str, dict[str, float]]] = {}
    for title, grouping in found.items():
        report[title] = {}
        for number, name in enumerate(grouping.names):
            ranks = answers.ranks[grouping.labels == number]
            if len(ranks):
                report[title][name] = {
                    "queries": len(ranks),
                    "ndcg@10": ndcg(ranks),
                    "hr@10": hit_rate(ranks),
                }
    return report


def head_share(top: NDArray[np.int64], corpus: Corpus, known: Bools) -> float:
    """Share of all places (Q, K) that go to the most frequent fifth of the items."""
    counts = np.bincount(corpus.codes[known], minlength=corpus.num_items)
    head = np.zeros(corpus.num_items, bool)
    head[np.argsort(-counts, kind="stable")[: round(_HEAD * (counts > 0).sum())]] = True
    return float(head[top].mean())


def disparity(groups: Mapping[str, Mapping[str, float]]) -> float | None:
    """Worst over best group's NDCG@10; null where there is nothing to compare."""
    values = [group["ndcg@10"] for group in groups.values() if group["queries"] >= _LEAST]
    return min(values) / max(values) if len(values) > 1 and max(values) > 0 else None


def compared(
    bare: Sequence[dict[str, Any]], defended: Sequence[dict[str, Any]], tolerance: float = TOLERANCE
) -> dict[str, Any]:
    """Groups with and without a defence, as means over runs of the same seeds (reports of `by_group`).

    Returns:
        Per grouping ``groups`` (``without``, ``with``, ``change`` of NDCG@10), ``disparity`` of both; and
        ``warnings`` about every group that loses more than ``tolerance`` of its NDCG@10.
    """
    report: dict[str, Any] = {}
    warnings: list[str] = []
    for title in bare[0] if bare else ():
        means: list[dict[str, dict[str, float]]] = []
        for runs in (bare, defended):
            names = set.intersection(*(set(run[title]) for run in (*bare, *defended)))
            means.append(
                {
                    name: {
                        key: float(np.mean([run[title][name][key] for run in runs]))
                        for key in ("queries", "ndcg@10")
                    }
                    for name in bare[0][title]
                    if name in names
                }
            )
        groups = {}
        for name, was in means[0].items():
            now = means[1][name]
            change = now["ndcg@10"] / was["ndcg@10"] - 1 if was["ndcg@10"] else None
            groups[name] = {
                "queries": was["queries"],
                "without": was["ndcg@10"],
                "with": now["ndcg@10"],
                "change": change,
            }
            if change is not None and change < -tolerance and was["queries"] >= _LEAST:
                warnings.append(f"{title}, {name}: NDCG@10 {change:+.1%} (tolerance {-tolerance:.0%})")
        report[title] = {"groups": groups, "disparity": [disparity(mean) for mean in means]}
    return {"by": report, "warnings": warnings}
