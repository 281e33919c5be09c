"""Prequential evaluation ("test, then reveal"): the live answer and a popularity baseline on the same events.

Before an event is sent, the endpoint is asked for that user's top k and the event's item is looked for in it.
Dawid, "Statistical Theory: The Prequential Approach", JRSS A 147(2), 1984; Gama et al., "On evaluating stream
learning algorithms", Machine Learning 90, 2013. With one relevant item, NDCG@k is 1/log2(rank + 2), rank from
0.

The baseline knows what the replay has sent so far: the k most sent items, and where `exclude_seen` is in
force not those the user already had. It knows a user's whole history, so it is never weaker than the same
rule in an endpoint that keeps the last L events.
"""

import math
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from services.client import Answer
from services.datasets import Dataset

Int64 = npt.NDArray[np.int64]


def encode(column: pa.ChunkedArray | pa.Array) -> tuple[Int64, int]:
    """Number the distinct values of a text column: codes (N,) int64 in order of first sight, and how many."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    encoded = pc.dictionary_encode(array)
    return encoded.indices.to_numpy(zero_copy_only=False).astype(np.int64), len(encoded.dictionary)


class Popularity:
    """Ranks items by how often they have been sent; ties go to the item that came first in the stream."""

    def __init__(self, dataset: Dataset, exclude_seen: bool) -> None:
        self._users, num_users = encode(dataset.interactions["user_id"])
        self._items, num_items = encode(dataset.interactions["item_id"])
        self._counts = np.zeros(num_items, np.int64)
        self._exclude_seen = exclude_seen
        self._by_user = np.argsort(self._users, kind="stable")  # rows of user 0, of user 1, ... each in order
        self._starts = np.searchsorted(self._users[self._by_user], np.arange(num_users))
        self._place = np.empty(len(self._users), np.int64)  # row -> how many rows of its user come before it
        self._place[self._by_user] = np.arange(len(self._users)) - self._starts[self._users[self._by_user]]

    def sent(self, start: int, stop: int) -> None:
        """Count the events of rows [start, stop)."""
        self._counts += np.bincount(self._items[start:stop], minlength=len(self._counts))

    def sent_one(self, row: int) -> None:
        """Count the event of one row."""
        self._counts[self._items[row]] += 1

    def rank(self, row: int) -> int | None:
        """Rank (from 0) of the row's item for its user just before it is sent; None if never sent or seen."""
        item = self._items[row]
        if self._counts[item] == 0:
            return None
        better = self._counts > self._counts[item]
        better[:item] |= self._counts[:item] == self._counts[item]  # codes are in order of first sight
        if self._exclude_seen:
            first = self._starts[self._users[row]]
            seen = self._items[self._by_user[first : first + self._place[row]]]
            if np.any(seen == item):
                return None
            better[seen] = False
        return int(np.count_nonzero(better))


@dataclass(frozen=True)
class PrequentialScore:
    """Totals so far. Rates are None before the first scored request."""

    requests: int  # answered by a trained model, and so scored
    hit_rate: float | None
    ndcg: float | None
    popularity_hit_rate: float | None
    popularity_ndcg: float | None
    recent_hit_rate: float | None  # over the newest `window` scored requests
    recent_popularity_hit_rate: float | None
    untrained: int  # answered before there was a trained model, not scored
    failed: int  # no answer, not scored
    skipped: int  # due for a request, not asked because too many were under way


class Prequential:
    """Adds up scored requests; may be used by several threads."""

    def __init__(self, k: int = 10, window: int = 500) -> None:
        self._k = k
        self._lock = threading.Lock()
        self._recent: deque[tuple[bool, bool]] = deque(maxlen=window)
        self._requests = self._hits = self._popular_hits = 0
        self._gain = self._popular_gain = 0.0
        self._untrained = self._failed = self._skipped = 0

    def score(self, item_id: str, answer: Answer | None, popular_rank: int | None) -> None:
        """Score one answer (None: the request failed) for the item that the user then took."""
        with self._lock:
            if answer is None:
                self._failed += 1
                return
            if not answer.trained:
                self._untrained += 1
                return
            top = answer.items[: self._k]
            rank = top.index(item_id) if item_id in top else None
            if popular_rank is not None and popular_rank >= self._k:
                popular_rank = None
            self._requests += 1
            self._hits += rank is not None
            self._popular_hits += popular_rank is not None
            self._gain += gain(rank)
            self._popular_gain += gain(popular_rank)
            self._recent.append((rank is not None, popular_rank is not None))

    def skip(self) -> None:
        """Count a request that was due but not made."""
        with self._lock:
            self._skipped += 1

    def totals(self) -> PrequentialScore:
        """Totals at this moment."""
        with self._lock:
            count, recent = self._requests, list(self._recent)
            return PrequentialScore(
                requests=count,
                hit_rate=_share(self._hits, count),
                ndcg=_share(self._gain, count),
                popularity_hit_rate=_share(self._popular_hits, count),
                popularity_ndcg=_share(self._popular_gain, count),
                recent_hit_rate=_share(sum(ours for ours, _ in recent), len(recent)),
                recent_popularity_hit_rate=_share(sum(theirs for _, theirs in recent), len(recent)),
                untrained=self._untrained,
                failed=self._failed,
                skipped=self._skipped,
            )


def gain(rank: int | None) -> float:
    """Discounted gain of the one relevant item at a rank from 0; 0 where it is not in the list."""
    return 0.0 if rank is None else 1.0 / math.log2(rank + 2)


def _share(part: float, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None
