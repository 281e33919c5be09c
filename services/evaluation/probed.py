"""What attacks at serving time do to one model that stays as it is.

texts       items' texts are rewritten, so that their vectors change; ids and everything else stay.
histories   each asked user's own history is changed or made longer.
embedding   the representations of histories move within a ball, so that the next item is lost.

The model is asked before and after, with the same queries and the targets new to their users.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as fn

from services.evaluation.corpus import Bools, Corpus, Int64, sample
from services.evaluation.ours import SequenceScorer
from services.evaluation.poisoned import Lists, lists_of, overlap
from services.evaluation.ranking import ask
from services.evaluation.streamed import StreamLearner
from training.attacks import EMBEDDING_ATTACKS, HISTORY_ATTACKS, TEXT_ATTACKS, TextView
from training.attacks.embedding import EmbeddingAttack
from training.attacks.sequential import HistoryAttack
from training.attacks.texts import Encode, Float32, Float64, Worth
from training.encoder import load_text_encoder
from training.items import ItemTable
from training.metrics import hit_rate, ndcg
from training.model import SequenceModel
from training.text_guard import TextGuard, degrees

SERVING_ATTACKS = (*TEXT_ATTACKS, *HISTORY_ATTACKS, *EMBEDDING_ATTACKS)
_VALUES_AT_ONCE = 8_000_000  # (histories × positions × items) or (histories × items) floats held at a time
_KNOWN_USERS = 512  # whose lists an attacker with a copy of the model looks at


@dataclass(frozen=True)
class Means:
    """What the attackers can spend.

    Attributes:
        events: of each history that are changed or added. words: of each text that are added or changed.
        epsilon: radius of the ball, as a share of a representation's norm. steps: of PGD.
        informed: whether who rewrites texts has a copy of the model, beside the text encoder.
    """

    events: int = 3
    words: int = 5
    epsilon: float = 0.1
    steps: int = 3
    informed: bool = True


def probe(
    learner: StreamLearner,
    weights: dict[str, Tensor],
    upto: int,
    kind: str,
    targets: Int64,
    queries: Int64,
    seed: int,
    tell: Callable[[str], None],
    *,
    means: Means | None = None,
    guard: TextGuard | None = None,
    encode: Encode | None = None,
) -> dict[str, Any]:
    """Attack one model as it would serve at a moment of the stream.

    Args:
        learner: of the corpus and the settings. weights: the model's. upto: the moment; what came before is known.
        kind: a name of `SERVING_ATTACKS`. targets: (T,) item codes. queries: (Q,) positions of events behind it.
        seed: of what an attack draws. tell: told of progress.
        means: what the attacker can spend; the defaults if None.
        guard: for attacks on texts: measured without it and with it; its defaults if None.
        encode: the text encoder; by default the settings'.

    Returns:
        What `text_attacked`, `history_attacked` or `embedding_attacked` return. For texts also ``guarded``, the same
        under the guard, and ``untouched``, all of it for targets that nobody has touched yet, which have no ids.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in SERVING_ATTACKS:
        raise ValueError(f"kind: expected one of {', '.join(SERVING_ATTACKS)}; got {kind!r}")
    means = means or Means()
    corpus, table = learner.corpus, learner.table(upto)
    model = SequenceModel(learner.settings.model)
    model.load_state_dict(weights)
    tell(f"{kind}: {len(queries)} users are asked before and after")
    if kind in EMBEDDING_ATTACKS:
        ball = (means.epsilon, means.steps)
        return embedding_attacked(corpus, model, table, queries, kind, *ball)
    if kind in HISTORY_ATTACKS:
        return history_attacked(corpus, model, table, targets, queries, kind, means.events)
    encode = encode or load_text_encoder(learner.settings.text_encoder).encode

    def rewritten(table: ItemTable, guard: TextGuard | None) -> dict[str, Any]:
        rng, known = np.random.default_rng(seed), learner.revealed(upto)
        asked = (corpus, model, table, targets, queries, kind, encode, rng)
        return text_attacked(*asked, known=known, words=means.words, informed=means.informed, guard=guard)

    def with_and_without(table: ItemTable) -> dict[str, Any]:
        held = rewritten(table, guard or TextGuard())
        return {**rewritten(table, None), "guarded": {key: held[key] for key in _GUARDED}}

    slots = table.slots.copy()
    slots[targets] = -1
    untouched = with_and_without(replace(table, slots=slots))
    return {**with_and_without(table), "untouched": {key: untouched[key] for key in _UNTOUCHED}}


_MEASURED = ("lift", "gain", "overlap@10", "degrees", "texts")
_GUARDED = ("guard", "after", *_MEASURED)
_UNTOUCHED = ("before", "after", *_MEASURED, "guarded")


def _changes(before: Lists, after: Lists) -> dict[str, Any]:
    """Figures before and after, and what became of the targets' exposure."""
    honest, exposed = (lists.figures["exposure@10"] for lists in (before, after))
    return {
        "before": before.figures,
        "after": after.figures,
        "lift": exposed / honest if honest else None,
        "gain": exposed - honest,
        "overlap@10": overlap(before.top, after.top),
    }


def text_attacked(
    corpus: Corpus,
    model: SequenceModel,
    table: ItemTable,
    targets: Int64,
    queries: Int64,
    kind: str,
    encode: Encode,
    rng: np.random.Generator,
    *,
    known: Bools | None = None,
    words: int = 5,
    informed: bool = True,
    guard: TextGuard | None = None,
) -> dict[str, Any]:
    """Rewrite the targets' texts, encode them anew, and ask again.

    Args:
        table: of all items of the corpus, by code. targets: (T,) item codes. queries: (Q,) positions of events.
        kind: a name of `training.attacks.TEXT_ATTACKS`. encode: (n,) texts to (n, D) vectors, as made ``table.text``.
        known: (E,) events that an attacker has seen; by default those before the first query arrived.
        words: budget of each text. informed: the attacker has a copy of the model and of known histories.
        guard: what stands between a new text and its vector; an attacker knows of it.

    Returns:
        ``before`` and ``after`` (``hr@10``, ``hr@50``, ``exposure@10`` of the targets, ``ndcg@10``), ``lift`` = after
        over before exposure (null where that is 0), ``gain``, their difference, ``overlap@10`` of the lists,
        ``degrees`` that the vectors moved on average, and the ``texts``.
    """
    if known is None:
        known = corpus.arrival < corpus.arrival[queries].min()
    counts = np.bincount(corpus.codes[known], minlength=corpus.num_items).astype(np.float64)

    def read(texts: list[str]) -> Float32:
        return encode(texts if guard is None else guard.clean(texts))

    def stands(vectors: Float32, items: Int64) -> Float32:
        return vectors if guard is None else guard.held(table.text[items], vectors)

    worth: Worth | None = None
    if informed:
        people = sample(np.flatnonzero(known & corpus.has_history), _KNOWN_USERS, int(rng.integers(2**31)))
        share = _share_of(corpus, model, table, people)

        def worth(vectors: Float32, items: Int64) -> Float64:
            return share(stands(vectors, items), items)

    view = TextView(corpus.texts, counts, read, worth)
    texts = TEXT_ATTACKS[kind]().rewrite(view, targets, words, rng)
    vectors = stands(read(texts), targets)
    changed = table.text.copy()
    changed[targets] = vectors
    before = lists_of(SequenceScorer(corpus, model, table), corpus, queries, targets)
    after = lists_of(SequenceScorer(corpus, model, replace(table, text=changed)), corpus, queries, targets)
    return {
        "kind": kind,
        "words": words,
        "informed": informed,
        "guard": None if guard is None else guard.most_degrees,
        **_changes(before, after),
        "degrees": float(degrees(table.text[targets], vectors).mean()),
        "texts": [
            {"item": corpus.item_ids[code], "before": corpus.texts[code], "after": text}
            for code, text in zip(targets.tolist(), texts, strict=True)
        ],
    }


@torch.no_grad()
def _share_of(corpus: Corpus, model: SequenceModel, table: ItemTable, people: Int64) -> Worth:
    """Mean share that an item with some text vector would have in the softmax of these users."""
    reader = _Reader(corpus, model.eval(), table)
    users = torch.cat([reader.users(people[at : at + 128]) for at in range(0, len(people), 128)])  # (U, d)
    stride = max(1, _VALUES_AT_ONCE // len(table))
    totals = torch.cat(
        [
            torch.logsumexp(model.scores(users[at : at + stride], reader.items), dim=1)
            for at in range(0, len(users), stride)
        ]
    )
    slots = torch.from_numpy(table.slots)

    @torch.no_grad()
    def share(vectors: Float32, items: Int64) -> Float64:
        moved = model.item_representations(torch.from_numpy(vectors), slots[torch.from_numpy(items)])
        found: NDArray[np.float64] = (
            (model.scores(users, moved) - totals[:, None]).exp().mean(0).double().numpy()
        )
        return found

    return share


class _Reader(SequenceScorer):
    """A scorer whose model and representations its attackers can read."""

    def __init__(self, corpus: Corpus, model: SequenceModel, table: ItemTable) -> None:
        super().__init__(corpus, model, table)
        self.corpus, self.model, self.items = corpus, self._model, self._items

    @torch.no_grad()
    def users(self, queries: Int64) -> Tensor:
        """(B, d) users at the end of their histories."""
        batch = self.corpus.batch(queries, self.model.config.length)
        history = self.items[batch.items] * batch.mask.unsqueeze(-1)
        users: Tensor = self.model(history, batch.types, batch.times, batch.mask)[:, -1]
        return users

    def parts(self, queries: Int64) -> list[Int64]:
        """The queries in batches that leave room for an attack."""
        size = max(1, _VALUES_AT_ONCE // (len(self.items) * 8 + 64 * self.model.config.length))
        return [queries[at : at + size] for at in range(0, len(queries), size)]


class HistoriesAttacked(_Reader):
    """Answers as the model does once each history is attacked; what the attack put there counts as seen."""

    def __init__(
        self,
        corpus: Corpus,
        model: SequenceModel,
        table: ItemTable,
        attack: HistoryAttack,
        targets: Int64,
        budget: int,
    ) -> None:
        super().__init__(corpus, model, table)
        self._attack, self._targets, self._budget = attack, torch.from_numpy(targets), budget

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender; -inf for what the attack put into the history."""
        return torch.cat([self._scored(part) for part in self.parts(queries)])

    def _scored(self, queries: Int64) -> Tensor:
        batch = self.corpus.batch(queries, self.model.config.length)
        polluted = self._attack.attack(self.model, self.items, batch, self._targets, self._budget)
        with torch.no_grad():
            history = self.items[polluted.items] * polluted.mask.unsqueeze(-1)
            scores = self.model.next_scores(
                history, polluted.types, polluted.times, polluted.mask, self.items, polluted.items
            )
        held = torch.zeros_like(scores).scatter_add_(1, polluted.items, polluted.mask.to(scores.dtype)) > 0
        return scores.masked_fill(held & ~torch.from_numpy(self.corpus.seen(queries)), float("-inf"))


def history_attacked(
    corpus: Corpus,
    model: SequenceModel,
    table: ItemTable,
    targets: Int64,
    queries: Int64,
    kind: str,
    events: int = 3,
) -> dict[str, Any]:
    """Attack the history of each query towards the targets, and ask again.

    Args:
        table: of all items of the corpus, by code. targets: (T,) item codes. queries: (Q,) positions of events.
        kind: a name of `training.attacks.HISTORY_ATTACKS`. events: budget of each history.

    Returns:
        As `text_attacked`, less what is about texts. An item that is to be predicted and that the attack put into the
        history counts as lost.
    """
    before = lists_of(SequenceScorer(corpus, model, table), corpus, queries, targets)
    attacked = HistoriesAttacked(corpus, model, table, HISTORY_ATTACKS[kind](), targets, events)
    after = lists_of(attacked, corpus, queries, targets)
    return {"kind": kind, "events": events, **_changes(before, after)}


class RepresentationsAttacked(_Reader):
    """Answers as the model does once the representations of each history are moved against its next item."""

    def __init__(
        self, corpus: Corpus, model: SequenceModel, table: ItemTable, attack: EmbeddingAttack
    ) -> None:
        super().__init__(corpus, model, table)
        self._attack = attack

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        return torch.cat([self._scored(part) for part in self.parts(queries)])

    def _scored(self, queries: Int64) -> Tensor:
        batch = self.corpus.batch(queries, self.model.config.length)
        wanted = torch.from_numpy(self.corpus.codes[queries])

        def scores_of(history: Tensor) -> Tensor:
            return self.model.next_scores(
                history, batch.types, batch.times, batch.mask, self.items, batch.items
            )

        def loss_of(history: Tensor) -> Tensor:
            return fn.cross_entropy(scores_of(history), wanted, reduction="sum")

        moved = self._attack.attack(loss_of, self.items[batch.items] * batch.mask.unsqueeze(-1))
        with torch.no_grad():
            return scores_of(moved)


def embedding_attacked(
    corpus: Corpus,
    model: SequenceModel,
    table: ItemTable,
    queries: Int64,
    kind: str,
    epsilon: float = 0.1,
    steps: int = 3,
) -> dict[str, Any]:
    """Move what stands for each history against its next item, and ask again.

    Args:
        table: of all items of the corpus, by code. queries: (Q,) positions of events.
        kind: a name of `training.attacks.EMBEDDING_ATTACKS`. epsilon: radius, as a share of a vector's norm.
        steps: of PGD; FGM takes one.

    Returns:
        ``before`` and ``after`` (``ndcg@10``, ``hr@10`` of items new to their users), ``kept`` = after over before
        NDCG@10 (null where that is 0), ``overlap@10`` of the lists, ``epsilon`` and ``steps``.
    """
    steps = 1 if kind == "fgm" else steps
    attack = EMBEDDING_ATTACKS[kind](epsilon=epsilon, steps=steps)
    before, after = (
        ask(scorer, corpus, queries, unseen=True)
        for scorer in (
            SequenceScorer(corpus, model, table),
            RepresentationsAttacked(corpus, model, table, attack),
        )
    )
    clean, attacked = ({"ndcg@10": ndcg(one.ranks), "hr@10": hit_rate(one.ranks)} for one in (before, after))
    return {
        "kind": kind,
        "epsilon": epsilon,
        "steps": steps,
        "before": clean,
        "after": attacked,
        "kept": attacked["ndcg@10"] / clean["ndcg@10"] if clean["ndcg@10"] else None,
        "overlap@10": overlap(before.top, after.top),
    }
