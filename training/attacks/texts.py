"""Attacks on what is written about items: whoever sells an item words its title, and the text encoder reads it.

An attack rewrites the texts of its targets within a number of words. Those that search may ask the text encoder,
which is public, as often as they like. What they climb is the cosine with the mean vector of popular items, or, for
an attacker who has a copy of the recommender, whatever it says that a vector is worth (`TextView.worth`).

Legend: N items, T targets, D text width, V words.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from training.attacks.contract import Int64
from training.text_guard import LOOK_ALIKES

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]
Encode = Callable[[list[str]], Float32]
Worth = Callable[[Float32, Int64], Float64]

_POPULAR = 50  # items whose mean vector is what many users want
_VOCABULARY = 3000
_WORD = re.compile(r"[^\W\d_]{3,}")
_SMALL = "the and for with from that this its his her you your are was not but all one set pack"
_PROMISE = (
    "Popular bestseller top rated award winning customer favourite must have highly recommended great quality"
)
_STOP = frozenset(_SMALL.split())
_ZERO_WIDTH = "\u200b"
_HOMOGLYPHS = {latin: other for other, latin in LOOK_ALIKES.items()}


@dataclass(frozen=True)
class TextView:
    """The catalogue as an outsider sees it.

    Attributes:
        texts: of the N items. counts: (N,) events of each. encode: (n,) texts to (n, D) vectors.
        worth: (n,) of vectors (n, D) as those of items (n,); None = cosine with the mean of popular items.
    """

    texts: list[str]
    counts: NDArray[np.float64]
    encode: Encode
    worth: Worth | None = None

    @cached_property
    def aim(self) -> Float32:
        """(D,) unit: mean vector of the most popular items."""
        popular = np.argsort(-self.counts, kind="stable")[:_POPULAR]
        mean = _unit(self.encode([self.texts[code] for code in popular])).mean(0)
        return np.asarray(mean / max(float(np.linalg.norm(mean)), 1e-12), np.float32)

    @cached_property
    def words(self) -> list[str]:
        """V words, those of the most events first; an item counts once for each of its words."""
        events: Counter[str] = Counter()
        for text, count in zip(self.texts, self.counts.tolist(), strict=True):
            for word in set(words_of(text)) - _STOP:
                events[word] += count
        return sorted(events, key=lambda word: (-events[word], word))[:_VOCABULARY]

    @cached_property
    def word_vectors(self) -> Float32:
        """(V, D) unit vectors of the words alone."""
        return _unit(self.encode(self.words))

    def value(self, vectors: Float32, items: Int64) -> Float64:
        """(n,) what the vectors (n, D) are worth to an attacker as those of the items (n,)."""
        if self.worth is not None:
            return self.worth(vectors, items)
        return (_unit(vectors) @ self.aim).astype(np.float64)


class TextAttack(Protocol):
    """A named way to rewrite texts so that items are shown."""

    name: ClassVar[str]
    reference: ClassVar[str]

    def rewrite(self, view: TextView, targets: Int64, budget: int, rng: np.random.Generator) -> list[str]:
        """New texts of the targets (T,), at most ``budget`` words of each added or changed; the same for one rng."""


class KeywordStuffing:
    """The words of the most popular items and categories stand behind the text."""

    name: ClassVar[str] = "keywords"
    reference: ClassVar[str] = "Gyöngyi and Garcia-Molina, Web spam taxonomy, AIRWeb 2005"

    def rewrite(self, view: TextView, targets: Int64, budget: int, rng: np.random.Generator) -> list[str]:
        """See TextAttack."""
        rewritten = []
        for text in _texts(view, targets):
            has = set(words_of(text))
            added = [word for word in view.words[: budget + len(has)] if word not in has][:budget]
            rewritten.append(" ".join([text, *added]).strip())
        return rewritten


class PromotionalPrefix:
    """Praise stands before the text."""

    name: ClassVar[str] = "prefix"
    reference: ClassVar[str] = (
        "Zhang, Liu, Liu, Wu, Guo and Wang, Stealthy attack on large language model based recommendation, ACL 2024"
    )

    def rewrite(self, view: TextView, targets: Int64, budget: int, rng: np.random.Generator) -> list[str]:
        """See TextAttack."""
        praise = " ".join(_PROMISE.split()[:budget])
        return [f"{praise} {text}".strip() for text in _texts(view, targets)]


class CharacterEdits:
    """Letters are swapped, lost, doubled, taken from another script or parted by what has no width."""

    name: ClassVar[str] = "characters"
    reference: ClassVar[str] = (
        "Gao, Lanchantin, Soffa and Qi, Black-box generation of adversarial text sequences to evade deep learning "
        "classifiers, SPW 2018; Boucher, Shumailov, Anderson and Papernot, Bad characters, S&P 2022"
    )

    def rewrite(self, view: TextView, targets: Int64, budget: int, rng: np.random.Generator) -> list[str]:
        """See TextAttack."""

        def propose(place: int, text: str) -> list[str]:
            return [
                text[: found.start()] + edit + text[found.end() :]
                for found in _WORD.finditer(text)
                for edit in _edits(found.group(), rng)
            ]

        return _climb(view, targets, budget, propose)


@dataclass(frozen=True)
class SynonymEdits:
    """Words give way to those of the catalogue that the encoder thinks nearest.

    Attributes:
        nearest: words tried for each. least_cosine: what is farther is no synonym.
    """

    name: ClassVar[str] = "synonyms"
    reference: ClassVar[str] = "Jin, Jin, Zhou and Szolovits, Is BERT really robust? (TextFooler), AAAI 2020"

    nearest: int = 8
    least_cosine: float = 0.5

    def rewrite(self, view: TextView, targets: Int64, budget: int, rng: np.random.Generator) -> list[str]:
        """See TextAttack."""
        number = {word: place for place, word in enumerate(view.words)}

        def synonyms(word: str) -> list[str]:
            at = number.get(word.lower())
            if at is None:
                return []
            alike = view.word_vectors @ view.word_vectors[at]
            alike[at] = -1.0
            order = np.argsort(-alike, kind="stable")[: self.nearest]
            return [view.words[one] for one in order if alike[one] >= self.least_cosine]

        def propose(place: int, text: str) -> list[str]:
            return [
                text[: found.start()] + word + text[found.end() :]
                for found in _WORD.finditer(text)
                for word in synonyms(found.group())
            ]

        return _climb(view, targets, budget, propose)


@dataclass(frozen=True)
class GreedyText:
    """Word by word, whichever of the catalogue's brings the text's vector nearest to what many want.

    Attributes:
        promising: words tried in each step, those that are worth most alone. others: drawn from the rest.
    """

    name: ClassVar[str] = "greedy"
    reference: ClassVar[str] = (
        "Zhong, Huang, Wettig and Chen, Poisoning retrieval corpora by injecting adversarial passages, EMNLP 2023; "
        "Oh, Verma and Kumar, Adversarial text rewriting for text-aware recommender systems, CIKM 2024"
    )

    promising: int = 48
    others: int = 16

    def rewrite(self, view: TextView, targets: Int64, budget: int, rng: np.random.Generator) -> list[str]:
        """See TextAttack."""
        count = len(view.words)
        if not count:
            return _texts(view, targets)
        best = [
            np.argsort(-view.value(view.word_vectors, np.full(count, target)), kind="stable")
            for target in targets.tolist()
        ]

        def propose(place: int, text: str) -> list[str]:
            has = set(words_of(text))
            rest = best[place][self.promising :]
            drawn = rng.choice(rest, min(self.others, len(rest)), replace=False)
            tried = [view.words[one] for one in [*best[place][: self.promising], *drawn]]
            return [f"{text} {word}".strip() for word in tried if word not in has]

        return _climb(view, targets, budget, propose)


def words_of(text: str) -> list[str]:
    """Words of three letters or more, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def _texts(view: TextView, targets: Int64) -> list[str]:
    return [view.texts[target] for target in targets.tolist()]


def _climb(
    view: TextView, targets: Int64, budget: int, propose: Callable[[int, str], Sequence[str]]
) -> list[str]:
    """Take the best of the proposed texts of each target, as often as the budget allows and it helps."""
    texts = _texts(view, targets)
    value = view.value(view.encode(texts), targets)
    for _ in range(budget):
        tried = [propose(place, text) for place, text in enumerate(texts)]
        ends = np.cumsum([0, *map(len, tried)])
        if not ends[-1]:
            break
        owner = np.repeat(np.arange(len(texts)), np.diff(ends))
        found = view.value(view.encode([text for part in tried for text in part]), targets[owner])
        helped = False
        for place, part in enumerate(tried):
            values = found[ends[place] : ends[place + 1]]
            if len(values) and values.max() > value[place]:
                value[place], texts[place], helped = values.max(), part[int(values.argmax())], True
        if not helped:
            break
    return texts


def _edits(word: str, rng: np.random.Generator) -> list[str]:
    """A word with one letter changed, once in each way that it allows."""
    at = int(rng.integers(1, len(word) - 1))  # the first and the last letter carry most for a reader
    edits = [
        word[:at] + word[at + 1] + word[at] + word[at + 2 :],
        word[:at] + word[at + 1 :],
        word[:at] + word[at] + word[at:],
        word[:at] + _ZERO_WIDTH + word[at:],
    ]
    known = [place for place, letter in enumerate(word) if letter in _HOMOGLYPHS]
    if known:
        place = int(rng.choice(known))
        edits.append(word[:place] + _HOMOGLYPHS[word[place]] + word[place + 1 :])
    return edits


def _unit(vectors: Float32) -> Float32:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12), np.float32)
