"""One evaluation from start to report: what `headrace evaluate` does."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from services.datasets import DatasetError, load_dataset
from services.evaluation import baselines
from services.evaluation.corpus import (
    Corpus,
    Split,
    leave_one_out,
    make_corpus,
    sample,
    temporal,
    with_cold_items,
)
from services.evaluation.ours import Ours
from services.evaluation.ranking import Recommender, ask, by_history, figures
from services.evaluation.sasrec import SasrecBaseline, SasrecSettings
from services.evaluation.streamed import Prequential
from services.machine import machine, peak_memory_gib, versions
from training.config import TrainingSettings

PROTOCOLS = ("loo", "temporal", "prequential")
MODELS = (
    "ours",
    "sasrec",
    "item-knn",
    "user-popular",
    "recent-popular",
    "popular",
    "category-popular",
    "user-categories",
    "random",
)
_PACKAGES = ("headrace", "torch", "transformers", "deepspeed", "numpy", "scipy", "pyarrow")


@dataclass(frozen=True)
class Request:
    """What to evaluate.

    Attributes:
        unseen: the headline's reading (see `services.evaluation.ranking`); both readings are reported.
        cold: share of items kept out of training, which the test then asks for alone; 0 = none.
        holdout: share of the stream that `temporal` asks. queries: most that are asked, a fixed sample.
        cache: folder for text vectors and for fits that were not finished.
    """

    dataset: Path
    protocol: str
    models: Sequence[str]
    training: TrainingSettings
    sasrec: SasrecSettings
    seed: int = 0
    unseen: bool = True
    cold: float = 0.0
    holdout: float = 0.1
    queries: int = 20_000
    windows: int = 20
    patience: int = 5
    threads: int | None = None
    cache: Path = Path(".headrace/evaluation")


def evaluate(request: Request, tell: Callable[[str], None]) -> dict[str, Any]:
    """Run it; returns the report.

    Raises:
        DatasetError: the dataset is not as the format says, or has nothing to ask.
    """
    if request.threads:
        torch.set_num_threads(request.threads)
    corpus = make_corpus(load_dataset(request.dataset))
    tell(
        f"{corpus.name}: {len(corpus):,} events, {len(corpus.sequences):,} users, {corpus.num_items:,} items"
    )
    report: dict[str, Any] = {
        "dataset": corpus.name,
        "protocol": request.protocol,
        "seed": request.seed,
        "filter": "unseen" if request.unseen else "all",
        "sizes": {"events": len(corpus), "users": len(corpus.sequences), "items": corpus.num_items},
    }
    if request.protocol == "prequential":
        report |= _prequential(request, corpus, tell)
    else:
        report |= _static(request, corpus, tell)
    return report | {
        "peak_memory_gib": peak_memory_gib(),
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "versions": versions(*_PACKAGES),
    }


def _prequential(request: Request, corpus: Corpus, tell: Callable[[str], None]) -> dict[str, Any]:
    run = Prequential(
        corpus, request.training, request.cache, windows=request.windows, unseen=request.unseen, tell=tell
    ).run()
    return run | {"training": request.training.model_dump(mode="json", exclude_defaults=True)}


def split_of(request: Request, corpus: Corpus) -> Split:
    """The split that the request names.

    Raises:
        DatasetError: it leaves nothing to learn from or to ask.
    """
    split = leave_one_out(corpus) if request.protocol == "loo" else temporal(corpus, request.holdout)
    if request.cold:
        split = with_cold_items(corpus, split, request.cold, request.seed)
    empty = [name for name in ("train", "validation", "test") if not _count(split, name)]
    if empty:
        raise DatasetError(
            f"{corpus.name}: nothing is left for {' and '.join(empty)} under the protocol {request.protocol}; "
            "users need three events or more (loo), the holdout needs users who were seen before it (temporal)"
        )
    return split


def _count(split: Split, name: str) -> int:
    return int(split.train.sum()) if name == "train" else len(getattr(split, name))


def _static(request: Request, corpus: Corpus, tell: Callable[[str], None]) -> dict[str, Any]:
    split = split_of(request, corpus)
    queries = sample(split.test, request.queries, request.seed)
    among = split.cold if request.cold else None
    found: dict[str, Any] = {}
    for name in request.models:
        began = time.monotonic()
        tell(f"{name}: learns")
        model = _make(name, request, lambda text, name=name: tell(f"{name}: {text}"))  # type: ignore[misc]
        model.fit(corpus, split)
        fitted = time.monotonic()
        entry: dict[str, Any] = {}
        for reading in ("unseen", "all"):
            asked = _tuned_for(model, reading == "unseen", corpus, split)
            answers = ask(asked, corpus, queries, unseen=reading == "unseen", among=among)
            entry[reading] = figures(answers, corpus, split, seed=request.seed)
            entry[reading]["by_history"] = by_history(answers, corpus)
        headline = entry["unseen" if request.unseen else "all"]
        found[name] = {
            **{key: value for key, value in headline.items() if key not in ("segments", "by_history")},
            **entry,
            "settings": getattr(model, "settings", {}),
            "fit_seconds": round(fitted - began, 1),
            "ask_seconds": round(time.monotonic() - fitted, 1),
        }
        tell(f"{name}: NDCG@10 {headline['ndcg@10']:.4f}, HR@10 {headline['hr@10']:.4f}")
    sizes = {"train": int(split.train.sum()), "validation": len(split.validation), "test": len(split.test)}
    more = {"cold_items": int(split.cold.sum())} if request.cold else {}
    return {"split": sizes | {"asked": len(queries)} | more, "models": found}


def _tuned_for(model: Recommender, unseen: bool, corpus: Corpus, split: Split) -> Recommender:
    """The model itself, or where it is cheap one whose settings are chosen for this reading."""
    if not isinstance(model, baselines.Tuned) or model.unseen == unseen:
        return model
    other: Any = type(model)(unseen=unseen)
    other.fit(corpus, split)
    return other  # type: ignore[no-any-return]


def _make(name: str, request: Request, tell: Callable[[str], None]) -> Recommender:
    if name == "ours":
        settings = request.training.model_copy(update={"seed": request.seed})
        if settings.model.repeats == "excluded" and not request.unseen:
            tell("repeats are asked: model.repeats = 'copied' is taken instead of 'excluded'")
            copied = settings.model.model_copy(update={"repeats": "copied"})
            settings = settings.model_copy(update={"model": copied})
        return Ours(settings, request.cache, unseen=request.unseen, patience=request.patience, tell=tell)
    if name == "sasrec":
        return SasrecBaseline(request.sasrec, unseen=request.unseen, seed=request.seed, tell=tell)
    plain: dict[str, Callable[[], Recommender]] = {
        "item-knn": lambda: baselines.ItemKnn(unseen=request.unseen),
        "user-popular": lambda: baselines.UserPopular(unseen=request.unseen),
        "recent-popular": lambda: baselines.RecentPopular(unseen=request.unseen),
        "popular": baselines.Popular,
        "category-popular": baselines.CategoryPopular,
        "user-categories": lambda: baselines.UserCategories(unseen=request.unseen),
        "random": baselines.Random,
    }
    return plain[name]()
