"""Prequential evaluation: each window is asked first and learned from afterwards, as a live system lives.

One model learns from the first part of the stream and then goes three ways:

static      stays as it is.
retrained   is trained from scratch on all that was revealed, at every fifth window.
continuous  is fine-tuned on each window as it is revealed, with replayed older sequences, as the learner does.

Compute is seconds spent in optimiser steps after the first training; asking is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from services.evaluation.corpus import Bools, Corpus, Int64, Split, rows_of, sample
from services.evaluation.ours import SequenceScorer, fitted_settings, make_table, text_vectors
from services.evaluation.ranking import Answers, ask, figures, validated
from training.config import TrainingSettings
from training.data import Sequences
from training.items import ItemTable
from training.metrics import hit_rate, ndcg
from training.model import SequenceModel
from training.offline import Fitted, Trainer

FIRST = 0.6  # of the stream is learned before anything is asked
_VALIDATED_ON = 3000
_ASKED_PER_WINDOW = 2000


class Prequential:
    """Runs the three ways over the windows of a corpus.

    Args:
        settings: of training; `initial_epochs`, `epochs_per_window`, `window_lr` and `replay_ratio` matter here.
        windows: how many the rest of the stream is cut into, of equal numbers of events.
        retrain_every: windows between trainings from scratch.
        unseen: ask for new items only.
    """

    def __init__(
        self,
        corpus: Corpus,
        settings: TrainingSettings,
        cache: Path,
        *,
        windows: int = 20,
        retrain_every: int = 5,
        unseen: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self._corpus, self._retrain_every, self._unseen = corpus, retrain_every, unseen
        self._tell = tell or (lambda _: None)
        self._text = text_vectors(corpus.texts, settings.text_encoder, cache)
        self._settings = fitted_settings(settings, corpus, self._text.shape[1])
        start = round(FIRST * len(corpus))
        self._cuts = np.linspace(start, len(corpus), windows + 1).round().astype(np.int64)

    def run(self) -> dict[str, Any]:
        """All windows; returns figures per way and window, and the compute of each."""
        first, trainer = self._first()
        epochs, lasting = first.epoch, {"first": round(first.seconds, 1)}
        self._tell(f"first model: {epochs} epochs, validation {first.best:.4f}, {first.seconds:.0f} s")
        models: dict[str, SequenceScorer] = {
            way: self._scorer(first) for way in ("static", "retrained", "continuous")
        }
        seconds = dict.fromkeys(models, 0.0)
        curve: list[dict[str, Any]] = []
        answers: dict[str, list[Answers]] = {way: [] for way in models}
        for number, (low, high) in enumerate(zip(self._cuts[:-1], self._cuts[1:], strict=True)):
            queries = self._queries(low, high)
            entry: dict[str, Any] = {"window": number, "events": int(high - low), "queries": len(queries)}
            for way, scorer in models.items():
                found = ask(scorer, self._corpus, queries, unseen=self._unseen)
                answers[way].append(found)
                entry[way] = {"ndcg@10": ndcg(found.ranks), "hr@10": hit_rate(found.ranks)}
            curve.append(entry)
            self._tell(
                f"window {number + 1}: NDCG@10 "
                + ", ".join(f"{way} {entry[way]['ndcg@10']:.4f}" for way in models)
            )
            if number + 2 == len(self._cuts):
                break
            learned = self._go_on(trainer, low, high, number)
            seconds["continuous"] += learned.seconds
            models["continuous"] = self._scorer(learned)
            if (number + 1) % self._retrain_every == 0:
                again = self._train(high, epochs, validate=False)
                seconds["retrained"] += again.seconds
                models["retrained"] = self._scorer(again)
        whole = {way: self._summary(parts) for way, parts in answers.items()}
        for way in models:
            whole[way]["train_seconds_after_first"] = round(seconds[way], 1)
        return {"models": whole, "curve": curve, "first": lasting | {"epochs": epochs}}

    def _summary(self, parts: list[Answers]) -> dict[str, Any]:
        joined = Answers(
            np.concatenate([part.queries for part in parts]),
            np.concatenate([part.ranks for part in parts]),
            np.concatenate([part.top for part in parts]),
        )
        return figures(joined, self._corpus, self._split(int(self._cuts[0])))

    def _split(self, upto: int) -> Split:
        """What may be learned from at a moment of the stream; no validation."""
        none = np.zeros(0, np.int64)
        cold = np.zeros(self._corpus.num_items, bool)
        return Split("prequential", self._corpus.arrival < upto, none, none, cold)

    def _queries(self, low: int, high: int) -> Int64:
        arrival = self._corpus.arrival
        wanted = (arrival >= low) & (arrival < high) & self._corpus.has_history
        if self._unseen:
            wanted &= ~self._corpus.repeats()
        return sample(np.flatnonzero(wanted), _ASKED_PER_WINDOW, int(low))

    def _scorer(self, fitted: Fitted) -> SequenceScorer:
        model = SequenceModel(self._settings.model)
        model.load_state_dict(fitted.weights)
        return SequenceScorer(self._corpus, model, fitted.table)

    def _revealed(self, upto: int) -> Bools:
        revealed: Bools = self._corpus.arrival < upto
        return revealed

    def _first(self) -> tuple[Fitted, Trainer]:
        """The model before the first window: its epochs are chosen on the newest part, then it learns from all."""
        chosen = self._train(int(self._cuts[0]), self._settings.initial_epochs, validate=True)
        trainer = Trainer(self._settings, texts=self._corpus.texts)
        table = make_table(self._corpus, self._text, self._revealed(int(self._cuts[0])))
        first = trainer.fit(
            rows_of(self._corpus, self._revealed(int(self._cuts[0]))),
            table,
            epochs=chosen.epoch,
            lr=self._settings.lr,
        )
        first.epoch, first.best = chosen.epoch, chosen.best
        return first, trainer

    def _train(self, upto: int, epochs: int, *, validate: bool) -> Fitted:
        corpus = self._corpus
        revealed = self._revealed(upto)
        train = self._revealed(round(0.95 * upto)) if validate else revealed
        table = make_table(corpus, self._text, train)
        judge: Callable[[SequenceModel, ItemTable], float] | None = None
        if validate:
            queries = sample(np.flatnonzero(revealed & ~train & corpus.has_history), _VALIDATED_ON, 0)

            def judge(model: SequenceModel, table: ItemTable) -> float:
                return validated(SequenceScorer(corpus, model, table), corpus, queries, unseen=self._unseen)

        trainer = Trainer(self._settings, texts=corpus.texts)
        return trainer.fit(
            rows_of(corpus, train),
            table,
            epochs=epochs,
            lr=self._settings.lr,
            validate=judge,
            tell=self._tell,
        )

    def _go_on(self, trainer: Trainer, low: int, high: int, number: int) -> Fitted:
        """Fine-tune on a window as the learner does."""
        began = time.monotonic()
        corpus = self._corpus
        known = np.bincount(corpus.codes[self._revealed(low)], minlength=corpus.num_items) > 0
        trainer.forget_ids(np.flatnonzero(~known))  # text alone until it learns
        new = self._window_rows(low, high)
        old = rows_of(corpus, self._revealed(low))
        fitted = trainer.fit(
            new,
            make_table(corpus, self._text, self._revealed(high)),
            epochs=self._settings.epochs_per_window,
            lr=self._settings.window_lr,
            old=old,
            number=number + 2,
        )
        self._tell(f"  learned window {number + 1} in {fitted.steps} steps, {time.monotonic() - began:.0f} s")
        return fitted

    def _window_rows(self, low: int, high: int) -> Sequences:
        """Users of a window: what they did before it as context, then what is new."""
        corpus = self._corpus
        inside = (corpus.arrival >= low) & (corpus.arrival < high)
        users = np.bincount(corpus.rows[inside], minlength=len(corpus.sequences)) > 0
        chosen = (corpus.arrival < high) & users[corpus.rows]
        before = np.bincount(corpus.rows[chosen & ~inside], minlength=len(corpus.sequences))
        return rows_of(corpus, chosen, np.maximum(before, 1)).take(np.flatnonzero(users))
