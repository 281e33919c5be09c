"""A recorded stream as arrays: users end to end, items as codes, and who is asked what under which protocol.

A *query* is an event to be predicted, named by its position in the flat arrays; its history are the events before it
in its user's row. Three protocols choose them:

loo         every user's last event is the test, the one before it the validation, the rest is for training (SASRec's
            and BERT4Rec's protocol). At test the validation event is part of the history.
temporal    one moment parts the stream; every event behind it is a query ("successive evaluation"), with all that
            its user did before, also behind that moment. Nothing behind it is trained on.
prequential see `services.evaluation.streamed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from services.datasets import Dataset, DatasetError
from services.prequential import encode
from streaming.catalog import Item
from training.data import Batch, Chunks, Sequences, make_batch

Int64 = NDArray[np.int64]
Bools = NDArray[np.bool_]

_VALIDATION = 0.05  # of the training events, the newest, where time parts the stream


@dataclass(frozen=True)
class Corpus:
    """R users' events laid end to end (E in all) over N items.

    Attributes:
        item_ids, texts, categories: of the N items, by code: first the catalogue's, then those only events know.
        sequences: one row per user; an item's "hash" is its code + 1.
        codes: (E,) item of each event. rows: (E,) its user. arrival: (E,) its place in the stream.
    """

    name: str
    item_ids: list[str]
    texts: list[str]
    categories: list[list[str]]
    sequences: Sequences
    codes: Int64
    rows: Int64
    arrival: Int64

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def num_items(self) -> int:
        """N."""
        return len(self.item_ids)

    @cached_property
    def category_pairs(self) -> Int64:
        """(M, 2): an item and the number of a category it is of, categories by name."""
        named = [(item, name) for item, kept in enumerate(self.categories) for name in kept]
        numbers = {name: number for number, name in enumerate(sorted({name for _, name in named}))}
        return np.array([(item, numbers[name]) for item, name in named], np.int64).reshape(-1, 2)

    @property
    def starts(self) -> Int64:
        """(E,) where the row of each event begins."""
        starts: Int64 = self.sequences.offsets[:-1][self.rows]
        return starts

    @property
    def has_history(self) -> Bools:
        """(E,) events that are not their user's first: only those can be asked."""
        later: Bools = self.starts < np.arange(len(self))
        return later

    def histories(self, queries: Int64, most: int | None = None) -> tuple[Int64, Int64]:
        """Events before each query, the newest `most` of them: which query (H,), and which event (H,)."""
        first = self.starts[queries]
        if most is not None:
            first = np.maximum(first, queries - most)
        lengths = queries - first
        query = np.repeat(np.arange(len(queries)), lengths)
        return query, np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths) + first[
            query
        ]

    def batch(self, queries: Int64, length: int) -> Batch:
        """The newest `length` events before each query, as a sequence model reads them."""
        starts = np.maximum(queries - length, self.starts[queries])
        return make_batch(self.sequences, self.codes, Chunks(starts, queries, queries, self.rows[queries]))

    def seen(self, queries: Int64) -> Bools:
        """(B, N): items in the history of each query."""
        seen = np.zeros((len(queries), self.num_items), bool)
        query, at = self.histories(queries)
        seen[query, self.codes[at]] = True
        return seen

    def repeats(self) -> Bools:
        """(E,): events whose item the user had before."""
        return ~self.sequences.first_occurrences()


def make_corpus(dataset: Dataset, event_types: tuple[str, ...] | None = None) -> Corpus:
    """Arrays of a dataset folder.

    Args:
        dataset: rows in time order.
        event_types: codes of the types, in order; by default those that occur.

    Raises:
        DatasetError: an event's type is not among `event_types`.
    """
    users, num_users = encode(dataset.interactions["user_id"])
    ids: list[str] = dataset.items["item_id"].to_pylist()
    known = {item: code for code, item in enumerate(ids)}
    names = pc.unique(dataset.interactions["item_id"]).to_pylist()
    for name in names:
        if name not in known:
            known[name] = len(ids)
            ids.append(name)
    codes, _ = encode(dataset.interactions["item_id"])
    codes = np.array([known[name] for name in names])[codes]
    kinds = dataset.interactions["event_type"].to_pylist()
    types = event_types or tuple(sorted(set(kinds)))
    unknown = set(kinds) - set(types)
    if unknown:
        raise DatasetError(
            f"event types {sorted(unknown)} are not among {list(types)}; name them, or leave them out"
        )
    number = {kind: code for code, kind in enumerate(types)}
    kind = np.array([number[one] for one in kinds], np.uint8)
    order = np.argsort(users, kind="stable")
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users, minlength=num_users))])
    texts, categories = _described(dataset, len(ids))
    sequences = Sequences(
        items=(codes[order] + 1).astype(np.uint64),
        times=dataset.interactions["timestamp_ms"].to_numpy()[order],
        types=kind[order],
        offsets=offsets,
        target_from=np.ones(num_users, np.int64),
        trust=np.ones(num_users, np.float32),
        users=np.arange(num_users, dtype=np.uint64),
    )
    return Corpus(dataset.name, ids, texts, categories, sequences, codes[order], users[order], order)


def _described(dataset: Dataset, count: int) -> tuple[list[str], list[list[str]]]:
    texts, categories = [""] * count, [list[str]() for _ in range(count)]
    for code, row in enumerate(dataset.items.to_pylist()):
        kept = tuple(one for one in row["categories"] or () if one)
        item = Item(
            item_id=row["item_id"],
            title=row["title"] or "",
            description=row["description"] or "",
            categories=kept,
        )
        texts[code], categories[code] = item.text(), list(kept)
    return texts, categories


@dataclass(frozen=True)
class Split:
    """What may be learned from, and what is asked.

    Attributes:
        train: (E,) events to learn from. validation, test: queries, as positions of events.
        cold: (N,) items that were kept out of training altogether.
    """

    protocol: str
    train: Bools
    validation: Int64
    test: Int64
    cold: Bools

    def training_rows(self, corpus: Corpus) -> Sequences:
        """The events to learn from, one row per user that has two or more."""
        return rows_of(corpus, self.train)


def rows_of(corpus: Corpus, chosen: Bools, target_from: Int64 | None = None) -> Sequences:
    """The chosen events (E,) as sequences of their own, one row per user; `target_from` (R,) as in `Sequences`."""
    whole = corpus.sequences
    counts = np.bincount(corpus.rows[chosen], minlength=len(whole))
    return Sequences(
        whole.items[chosen],
        whole.times[chosen],
        whole.types[chosen],
        np.concatenate([[0], np.cumsum(counts)]),
        whole.target_from if target_from is None else target_from,
        whole.trust,
        whole.users,
    )


def leave_one_out(corpus: Corpus) -> Split:
    """Last event of each user with three or more is the test, the one before it the validation."""
    offsets = corpus.sequences.offsets
    long = np.diff(offsets) >= 3
    last = offsets[1:][long] - 1
    train = np.ones(len(corpus), bool)
    train[last] = train[last - 1] = False
    return Split("loo", train, last - 1, last, np.zeros(corpus.num_items, bool))


def temporal(corpus: Corpus, holdout: float = 0.1) -> Split:
    """The newest share of the stream is asked, successively; the newest part of the rest is the validation."""
    test_from = round(len(corpus) * (1 - holdout))
    valid_from = round(test_from * (1 - _VALIDATION))
    arrival, has_history = corpus.arrival, corpus.has_history
    return Split(
        "temporal",
        arrival < valid_from,
        np.flatnonzero((arrival >= valid_from) & (arrival < test_from) & has_history),
        np.flatnonzero((arrival >= test_from) & has_history),
        np.zeros(corpus.num_items, bool),
    )


def with_cold_items(corpus: Corpus, split: Split, share: float, seed: int) -> Split:
    """Keep a random share of the items out of training; the test asks for those alone."""
    sold = np.flatnonzero(np.bincount(corpus.codes, minlength=corpus.num_items))
    picked = np.random.default_rng(seed).choice(sold, round(share * len(sold)), replace=False)
    cold = np.zeros(corpus.num_items, bool)
    cold[picked] = True
    of_cold = cold[corpus.codes]
    return Split(
        f"{split.protocol}, cold items",
        split.train & ~of_cold,
        split.validation[~of_cold[split.validation]],
        split.test[of_cold[split.test]],
        cold,
    )


def sample(queries: Int64, most: int, seed: int) -> Int64:
    """At most so many of the queries, in order; the same for the same seed."""
    if len(queries) <= most:
        return queries
    return np.sort(np.random.default_rng(seed).choice(queries, most, replace=False))
