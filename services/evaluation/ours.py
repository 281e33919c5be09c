"""Headrace's own model under evaluation: trained through the engine of production, from text and id."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from services.evaluation.corpus import Bools, Corpus, Int64, Split, sample
from services.evaluation.ranking import validated
from training.config import TrainingSettings
from training.encoder import load_text_encoder
from training.items import ItemTable
from training.model import SequenceModel
from training.offline import Trainer

_VALIDATED_ON = 3000  # queries


def text_vectors(texts: list[str], encoder: str, cache: Path) -> NDArray[np.float32]:
    """(N, D) vectors of the texts; kept in a file named by encoder and texts, since encoding takes minutes."""
    loaded = load_text_encoder(encoder)
    name = hashlib.sha256("\0".join([loaded.fingerprint, *texts]).encode()).hexdigest()[:16]
    file = cache / f"text-{name}.npy"
    if file.is_file():
        vectors: NDArray[np.float32] = np.load(file)
        return vectors
    vectors = loaded.encode(texts)
    cache.mkdir(parents=True, exist_ok=True)
    np.save(file, vectors)
    return vectors


def make_table(corpus: Corpus, text: NDArray[np.float32], trained: Bools) -> ItemTable:
    """All items of a corpus; one that no training event (mask of (E,)) names has no id and lives by its text."""
    codes = np.arange(corpus.num_items)
    known = np.bincount(corpus.codes[trained], minlength=corpus.num_items) > 0
    return ItemTable((codes + 1).astype(np.uint64), np.where(known, codes, -1), text, corpus.item_ids)


class SequenceScorer:
    """Scores by a `SequenceModel` as it would stand in serving."""

    def __init__(self, corpus: Corpus, model: SequenceModel, table: ItemTable) -> None:
        self._corpus, self._model = corpus, model.eval()
        with torch.no_grad():
            text, slots = torch.from_numpy(table.text), torch.from_numpy(table.slots)
            self._items = model.item_representations(text, slots)

    @torch.no_grad()
    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        batch = self._corpus.batch(queries, self._model.config.length)
        history = self._items[batch.items] * batch.mask.unsqueeze(-1)
        return self._model.next_scores(
            history, batch.types, batch.times, batch.mask, self._items, batch.items
        )


class Ours:
    """Trains on the split's events, keeps the epoch that is best on the validation.

    Args:
        settings: of training; shapes that follow from the data are set here.
        cache: folder for text vectors and unfinished fits.
        unseen: whether the validation, as the headline, asks for new items only.
        tell: told of progress.
    """

    name = "ours"

    def __init__(
        self,
        settings: TrainingSettings,
        cache: Path,
        *,
        unseen: bool,
        patience: int = 5,
        every: int = 1,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._settings, self._cache, self._unseen = settings, cache, unseen
        self._patience, self._every, self._tell = patience, every, tell
        self.settings: dict[str, Any] = {}

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        text = text_vectors(corpus.texts, self._settings.text_encoder, self._cache)
        settings = fitted_settings(self._settings, corpus, text.shape[1])
        table = make_table(corpus, text, split.train)
        queries = sample(split.validation, _VALIDATED_ON, 0)

        def validate(model: SequenceModel, table: ItemTable) -> float:
            return validated(SequenceScorer(corpus, model, table), corpus, queries, unseen=self._unseen)

        trainer = Trainer(settings, texts=corpus.texts)
        told = f"{settings.model_dump_json()}{corpus.name}{split.protocol}{self._unseen}"
        name = hashlib.sha256(told.encode() + np.packbits(split.train).tobytes()).hexdigest()
        found = trainer.fit(
            split.training_rows(corpus),
            table,
            epochs=settings.initial_epochs,
            lr=settings.lr,
            validate=validate,
            every=self._every,
            patience=self._patience,
            tell=self._tell,
            keep=self._cache / f"fit-{name[:16]}.pt",
        )
        trainer.model.load_state_dict(found.weights)
        self._scorer = SequenceScorer(corpus, trainer.model, found.table)
        self.settings = {
            "training": settings.model_dump(mode="json", exclude_defaults=True),
            "best_epoch": found.epoch,
            "validation_ndcg@10": found.best,
            "train_seconds": round(found.seconds, 1),
            "steps": found.steps,
            "curve": found.curve,
        }

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        return self._scorer.scores(queries)


def fitted_settings(settings: TrainingSettings, corpus: Corpus, text_dim: int) -> TrainingSettings:
    """A copy whose id table, event types and text width are the corpus'."""
    num_types = int(corpus.sequences.types.max()) + 1
    shape = {"id_capacity": corpus.num_items, "num_types": num_types, "text_dim": text_dim}
    return settings.model_copy(update={"model": settings.model.model_copy(update=shape)})
