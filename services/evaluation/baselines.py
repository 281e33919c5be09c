"""Recommenders without a network: the ones that must be beaten, with their settings chosen on the validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from torch import Tensor

from services.evaluation.corpus import Corpus, Int64, Split, sample
from services.evaluation.ranking import validated

_DAY_MS = 86_400_000
_VALIDATED_ON = 2000  # queries


def chosen_on_validation(
    recommender: Any, corpus: Corpus, split: Split, options: Sequence[Any], put: Callable[[Any], None]
) -> Any:
    """Try settings; the one with the best NDCG@10 on a sample of the validation stays, and is returned."""
    queries = sample(split.validation, _VALIDATED_ON, 0)
    best, found = options[0], -1.0
    for option in options:
        put(option)
        figure = validated(recommender, corpus, queries, unseen=recommender.unseen)
        if figure > found:
            best, found = option, figure
    put(best)
    return best


class Tuned:
    """A baseline with settings to choose.

    Args:
        unseen: whether the validation, as the headline, asks for new items only.
    """

    def __init__(self, *, unseen: bool) -> None:
        self.unseen = unseen
        self.settings: dict[str, Any] = {}


class Popular:
    """Every user is given the most frequent items of the training events."""

    name = "popular"

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        self._counts = torch.from_numpy(
            np.bincount(corpus.codes[split.train], minlength=corpus.num_items).astype(np.float32)
        )

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        return self._counts.expand(len(queries), -1)


class RecentPopular(Tuned):
    """Frequency in the training events, halved for every half-life that an event lies back."""

    name = "recent-popular"
    HALF_LIVES_DAYS = (0.25, 1, 3, 7, 14, 30, 90, 365)

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        times = corpus.sequences.times[split.train]
        age = (times.max() - times) / _DAY_MS

        def put(half_life: float) -> None:
            weights = np.exp2(-age / half_life)
            counts = np.bincount(corpus.codes[split.train], weights, corpus.num_items)
            self._counts = torch.from_numpy(counts.astype(np.float32))

        self.settings = {
            "half_life_days": chosen_on_validation(self, corpus, split, self.HALF_LIVES_DAYS, put)
        }

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        return self._counts.expand(len(queries), -1)


class History:
    """(B, N) sparse matrix of each query's history, events weighted by how far back they stand."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus

    def weighted(self, queries: Int64, decay: float, most: int = 200) -> sparse.csr_array:
        """The newest event weighs 1, each earlier one `decay` times the one after it; an item's weights add up."""
        query, at = self._corpus.histories(queries, most)
        weights = (decay ** (queries[query] - 1 - at)).astype(np.float32)
        shape = (len(queries), self._corpus.num_items)
        return sparse.csr_array((weights, (query, self._corpus.codes[at])), shape=shape)


class UserPopular(Tuned):
    """What the user had most and last; ties by popularity: repeat consumption alone."""

    name = "user-popular"

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        counts = np.bincount(corpus.codes[split.train], minlength=corpus.num_items)
        self._prior = (1e-6 * counts / max(counts.max(), 1)).astype(np.float32)
        self._history = History(corpus)

        def put(decay: float) -> None:
            self._decay = decay

        self.settings = {"decay": chosen_on_validation(self, corpus, split, (1.0, 0.99, 0.95, 0.8), put)}

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        own = self._history.weighted(queries, self._decay, most=1000).toarray()
        return torch.from_numpy(own + self._prior)


class ItemKnn(Tuned):
    """Items liked by the same users: cosine of their user sets, shrunk, over the history with decaying weights.

    Sarwar et al., WWW 2001, with Deshpande and Karypis' (2004) truncation to the k nearest neighbours.
    """

    name = "item-knn"
    OPTIONS = tuple((k, decay, 0.0) for k in (50, 200) for decay in (1.0, 0.95, 0.8, 0.5))
    # where repeats count an item may be a neighbour of itself
    WITH_ITSELF = tuple((k, decay, 1.0) for k, decay, _ in OPTIONS)
    SHRINKAGE = 10.0

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        pairs = np.unique(np.stack([corpus.rows[split.train], corpus.codes[split.train]]), axis=1)
        shape = (len(corpus.sequences), corpus.num_items)
        users = sparse.csr_array((np.ones(pairs.shape[1], np.float32), (pairs[0], pairs[1])), shape=shape)
        self._history = History(corpus)
        options = self.OPTIONS if self.unseen else self.OPTIONS + self.WITH_ITSELF
        sizes = {k for k, _, _ in options}
        nearest = _nearest(users, max(sizes), self.SHRINKAGE)
        truncated = {k: _truncated(nearest, k) for k in sizes}

        def put(option: tuple[int, float, float]) -> None:
            self._similar, self._decay, self._itself = truncated[option[0]], *option[1:]

        neighbours, decay, itself = chosen_on_validation(self, corpus, split, options, put)
        self.settings = {
            "neighbours": neighbours,
            "decay": decay,
            "itself": itself,
            "shrinkage": self.SHRINKAGE,
        }

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        history = self._history.weighted(queries, self._decay)
        found = history @ self._similar + self._itself * history
        return torch.from_numpy(found.toarray().astype(np.float32))


def _nearest(users: sparse.csr_array, most: int, shrinkage: float) -> sparse.csr_array:
    """(N, N): the `most` nearest neighbours of each item, a block of items at a time."""
    items = users.T.tocsr()
    norms = np.sqrt(np.asarray(items.sum(axis=1)).ravel())
    rows, columns, values = [], [], []
    for start in range(0, items.shape[0], 1000):
        both = (items[start : start + 1000] @ users).tocsr()
        for row in range(both.shape[0]):
            low, high = both.indptr[row], both.indptr[row + 1]
            others, common = both.indices[low:high], both.data[low:high]
            keep = others != start + row
            others, common = others[keep], common[keep]
            similar = common / (norms[start + row] * norms[others] + shrinkage)
            if len(similar) > most:
                best = np.argpartition(similar, -most)[-most:]
                others, similar = others[best], similar[best]
            rows.append(np.full(len(others), start + row))
            columns.append(others)
            values.append(similar)
    flat = np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))
    return sparse.csr_array(flat, shape=(items.shape[0], items.shape[0]))


def _truncated(similar: sparse.csr_array, most: int) -> sparse.csr_array:
    """The `most` largest values of each row."""
    cut = similar.copy()
    for row in range(cut.shape[0]):
        low, high = cut.indptr[row], cut.indptr[row + 1]
        if high - low > most:
            values = cut.data[low:high]
            values[values < np.partition(values, -most)[-most]] = 0
    cut.eliminate_zeros()
    return cut


def _membership(corpus: Corpus) -> sparse.csr_array:
    """(N, C): 1 where an item is of a category."""
    items, categories = corpus.category_pairs.T
    shape = (corpus.num_items, int(categories.max(initial=-1)) + 1)
    return sparse.csr_array((np.ones(len(items), np.float32), (items, categories)), shape=shape)


def _mean_over(member: sparse.csr_array, of_categories: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N, …): an item's mean over its categories of what is said of them (C, …); 0 without any."""
    share = np.maximum(np.asarray(member.sum(axis=1)).ravel(), 1)
    mean: NDArray[np.float32] = ((member @ of_categories).T / share).T.astype(np.float32)
    return mean


def _tie_breaks(count: int) -> NDArray[np.float32]:
    """Small random numbers: items of the same categories are shown in some order, so a few of them are hits."""
    return 1e-4 * np.random.default_rng(0).random(count, dtype=np.float32)


class CategoryPopular:
    """An item scores as the training events of its categories: what is left where nobody touched the item."""

    name = "category-popular"

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        member = _membership(corpus)
        counts = np.bincount(corpus.codes[split.train], minlength=corpus.num_items).astype(np.float32)
        scores = _mean_over(member, member.T @ counts)
        scores /= max(scores.max(), 1)
        self._scores = torch.from_numpy(scores + _tie_breaks(corpus.num_items))

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        return self._scores.expand(len(queries), -1)


class UserCategories(Tuned):
    """An item scores as its categories do in the user's own history: what a shop without a model would show."""

    name = "user-categories"

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        self._member, self._history = _membership(corpus), History(corpus)
        self._ties = _tie_breaks(corpus.num_items)

        def put(decay: float) -> None:
            self._decay = decay

        self.settings = {"decay": chosen_on_validation(self, corpus, split, (1.0, 0.99, 0.95, 0.8), put)}

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        history = self._history.weighted(queries, self._decay)
        tastes = (history @ self._member).toarray()
        tastes /= np.maximum(tastes.sum(axis=1, keepdims=True), 1e-9)
        return torch.from_numpy(_mean_over(self._member, tastes.T).T + self._ties)


class Random:
    """Scores drawn at random: the floor."""

    name = "random"

    def fit(self, corpus: Corpus, split: Split) -> None:
        """See Recommender."""
        self._items, self._rng = corpus.num_items, torch.Generator().manual_seed(0)

    def scores(self, queries: Int64) -> Tensor:
        """See Recommender."""
        return torch.rand(len(queries), self._items, generator=self._rng)
