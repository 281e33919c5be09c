"""Prequential evaluation: each window is asked first and learned from afterwards, as a live system lives.

One model learns from the first part of the stream and then goes three ways:

static      stays as it is.
retrained   is trained from scratch on all that was revealed, at every fifth window.
continuous  is fine-tuned on each window as it is revealed, with replayed older sequences, as the learner does.

Compute is CPU time spent in optimiser steps after the first training; asking is not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

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
_VALIDATION = 0.05  # of what is known, the newest, where epochs are chosen
_VALIDATED_ON = 3000
_ASKED_PER_WINDOW = 2000


class StreamLearner:
    """Learns from a corpus as the live learner does: a first model, then window after window.

    Moments of the stream are numbers of events, in order of arrival.

    Args:
        settings: of training; `initial_epochs`, `epochs_per_window`, `window_lr` and `replay_ratio` matter here.
        cache: folder for text vectors. unseen: what validations ask for. tell: told of progress.
    """

    def __init__(
        self,
        corpus: Corpus,
        settings: TrainingSettings,
        cache: Path,
        *,
        unseen: bool = True,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.corpus, self._unseen = corpus, unseen
        self._tell = tell or (lambda _: None)
        self._text = text_vectors(corpus.texts, settings.text_encoder, cache)
        self.settings = fitted_settings(settings, corpus, self._text.shape[1])

    def scorer(self, weights: dict[str, Tensor], table: ItemTable) -> SequenceScorer:
        """The model of these weights as it would answer."""
        model = SequenceModel(self.settings.model)
        model.load_state_dict(weights)
        return SequenceScorer(self.corpus, model, table)

    def revealed(self, upto: int) -> Bools:
        """(E,) events that arrived before a moment."""
        revealed: Bools = self.corpus.arrival < upto
        return revealed

    def table(self, upto: int) -> ItemTable:
        """All items; those that nobody had before a moment live by their text."""
        return make_table(self.corpus, self._text, self.revealed(upto))

    def trainer(self, weights: dict[str, Tensor] | None = None) -> Trainer:
        """A training engine, at its start or at these weights."""
        return Trainer(self.settings, weights, texts=self.corpus.texts)

    def first(self, upto: int) -> tuple[Fitted, Trainer]:
        """A model from all that came before: its epochs are chosen on the newest part, then it learns from all."""
        chosen = self._from_scratch(upto, self.settings.initial_epochs, validate=True)[0]
        fitted, trainer = self._from_scratch(upto, chosen.epoch, validate=False)
        fitted.epoch, fitted.best = chosen.epoch, chosen.best
        return fitted, trainer

    def retrained(
        self, upto: int, epochs: int, defended: Callable[[Sequences], Sequences] | None = None
    ) -> Fitted:
        """A new model from all that came before, in so many passes; `defended` as in `go_on`."""
        return self._from_scratch(upto, epochs, validate=False, defended=defended)[0]

    def _from_scratch(
        self,
        upto: int,
        epochs: int,
        *,
        validate: bool,
        defended: Callable[[Sequences], Sequences] | None = None,
    ) -> tuple[Fitted, Trainer]:
        corpus = self.corpus
        known = round((1 - _VALIDATION) * upto) if validate else upto
        judge: Callable[[SequenceModel, ItemTable], float] | None = None
        if validate:
            asked = self.revealed(upto) & ~self.revealed(known) & corpus.has_history
            queries = sample(np.flatnonzero(asked), _VALIDATED_ON, 0)

            def judge(model: SequenceModel, table: ItemTable) -> float:
                return validated(SequenceScorer(corpus, model, table), corpus, queries, unseen=self._unseen)

        trainer = self.trainer()
        rows = rows_of(corpus, self.revealed(known))
        fitted = trainer.fit(
            rows if defended is None else defended(rows),
            self.table(known),
            epochs=epochs,
            lr=self.settings.lr,
            validate=judge,
            tell=self._tell if validate else None,
        )
        return fitted, trainer

    def go_on(
        self,
        trainer: Trainer,
        low: int,
        high: int,
        number: int,
        defended: Callable[[Sequences], Sequences] | None = None,
    ) -> Fitted:
        """Fine-tune on the window between two moments as the learner does.

        Args:
            number: of the window, from 0. defended: makes of the window's rows those that are learned from.
        """
        began = time.monotonic()
        known = np.bincount(self.corpus.codes[self.revealed(low)], minlength=self.corpus.num_items) > 0
        trainer.forget_ids(np.flatnonzero(~known))  # text alone until it learns
        new = self.window_rows(low, high)
        fitted = trainer.fit(
            new if defended is None else defended(new),
            self.table(high),
            epochs=self.settings.epochs_per_window,
            lr=self.settings.window_lr,
            old=rows_of(self.corpus, self.revealed(low)),
            number=number + 2,
        )
        self._tell(f"  learned window {number + 1} in {fitted.steps} steps, {time.monotonic() - began:.0f} s")
        return fitted

    def window_rows(self, low: int, high: int) -> Sequences:
        """Users of a window: what they did before it as context, then what is new."""
        corpus = self.corpus
        inside = (corpus.arrival >= low) & (corpus.arrival < high)
        users = np.bincount(corpus.rows[inside], minlength=len(corpus.sequences)) > 0
        chosen = (corpus.arrival < high) & users[corpus.rows]
        before = np.bincount(corpus.rows[chosen & ~inside], minlength=len(corpus.sequences))
        return rows_of(corpus, chosen, before).take(np.flatnonzero(users))


class Prequential:
    """Runs the three ways over the windows of a corpus.

    Args:
        settings: of training, see `StreamLearner`.
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
        self._learner = StreamLearner(corpus, settings, cache, unseen=unseen, tell=tell)
        start = round(FIRST * len(corpus))
        self._cuts = np.linspace(start, len(corpus), windows + 1).round().astype(np.int64)

    def run(self) -> dict[str, Any]:
        """All windows; returns figures per way and window, and the compute of each."""
        learner = self._learner
        first, trainer = learner.first(int(self._cuts[0]))
        epochs, lasting = first.epoch, {"first": round(first.seconds, 1)}
        self._tell(f"first model: {epochs} epochs, validation {first.best:.4f}, {first.seconds:.0f} s")
        models: dict[str, SequenceScorer] = {
            way: learner.scorer(first.weights, first.table) for way in ("static", "retrained", "continuous")
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
            learned = learner.go_on(trainer, low, high, number)
            seconds["continuous"] += learned.seconds
            models["continuous"] = learner.scorer(learned.weights, learned.table)
            if (number + 1) % self._retrain_every == 0:
                again = learner.retrained(high, epochs)
                seconds["retrained"] += again.seconds
                models["retrained"] = learner.scorer(again.weights, again.table)
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
