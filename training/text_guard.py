"""What a changed text may do: it is cleaned before it is encoded, and its vector may move only so far.

An item's text is written by whoever sells it. Beyond ``most_degrees`` its vector stops on the great circle between
the old and the new one (slerp: Shoemake, Animating rotation with quaternion curves, SIGGRAPH 1985, section 3.3). The
cap holds from the vector that is trusted, not from the last one seen: many small steps reach no farther than one. An
item without a trusted vector, a new one, is only cleaned.

The angle does not tell the honest from the others: in short titles a typo moves the vector of all-MiniLM-L6-v2 by 30
degrees in the middle, an attack's five words by 25 to 50. It need not: who mends a typo loses nothing where the
vector stays.

Cleaning takes out what no reader sees or needs: compatibility forms (NFKC, Unicode Standard Annex 15), zero-width and
control characters (Boucher, Shumailov, Anderson and Papernot, Bad characters, IEEE S&P 2022), letters of another
script that look like Latin ones inside Latin words (Unicode Technical Standard 39, section 5), words said over and
over, and words beyond a number.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]

_RULES = 1  # of `sanitised` and `limited`; another number when they change, so that texts are encoded anew
MOST_DEGREES = (
    10.0  # half of what reordering the words or adding one usually moves a title by: those arrive in part
)
_SHORT = 3  # letters: "the", "of" may stand as often as they like, though not twice in a row more than once

LOOK_ALIKES = dict(
    zip(
        "асеорхуіјѕԁԛԝһАВСЕНІЈКМОРЅТХУαοενικρτυΑΒΕΖΗΙΚΜΝΟΡΤΥΧ",
        "aceopxyijsdqwhABCEHIJKMOPSTXYaoevikptuABEZHIKMNOPTYX",
        strict=True,
    )
)
"""Cyrillic and Greek letters, and the Latin one that each is taken for."""

_FOLD = str.maketrans(LOOK_ALIKES)
_FOREIGN = re.compile(f"[{''.join(LOOK_ALIKES)}]")
_LATIN = re.compile("[A-Za-z]")
_EDGES = ".,;:!?\"'()[]{}«»“”‘’*-–—/|#"


def sanitised(text: str, *, most_words: int = 256, most_repeats: int = 3) -> str:
    """A text as the encoder should read it; honest texts come through as they are but for white space.

    Args:
        text: any. most_words: what stands behind is cut off.
        most_repeats: how often one word of four letters or more may stand in it; two in a row are let through
            ("Bye Bye Birdie"), further ones never.
    """
    text = unicodedata.normalize("NFKC", text)
    kept = []
    for char in text:
        kind = unicodedata.category(char)
        if kind in {"Cc", "Zl", "Zp"}:
            kept.append(" ")
        elif kind[0] != "C":  # format (zero-width), surrogates, private use, unassigned
            kept.append(char)
    words = [_latin(word) for word in "".join(kept).split()]
    return " ".join(_once(words, most_repeats)[:most_words])


def _latin(word: str) -> str:
    """A word that mixes Latin letters with look-alikes, in Latin; any other as it is."""
    return word.translate(_FOLD) if _LATIN.search(word) and _FOREIGN.search(word) else word


def _once(words: list[str], most_repeats: int) -> list[str]:
    said: Counter[str] = Counter()
    kept, names = list[str](), list[str]()
    for word in words:
        name = word.strip(_EDGES).casefold()
        over = len(name) > _SHORT and said[name] >= most_repeats
        if name and (over or names[-2:] == [name, name]):
            continue
        said[name] += 1
        kept.append(word)
        names.append(name)
    return kept


def limited(old: Float32, new: Float32, most_degrees: float) -> Float32:
    """New vectors that have moved at most so far from the old ones.

    Args:
        old: (n, D) vectors that are trusted; zeros where an item had no text. new: (n, D).
        most_degrees: the largest angle between the two, from 0 to 180.

    Returns:
        (n, D): ``new`` where it is within the cap or where there is nothing to hold it to (``old`` or ``new`` zero),
        else the point of the great circle at the cap, as long as ``new``; ``old``'s direction where the two are
        opposite, so that no circle is named.

    Raises:
        ValueError: the shapes differ or the angle is out of bounds.
    """
    if old.shape != new.shape:
        raise ValueError(f"expected old and new vectors of one shape; got {old.shape} and {new.shape}")
    if not 0 <= most_degrees <= 180:
        raise ValueError(f"most_degrees must lie in [0, 180]; got {most_degrees}")
    far = degrees(old, new) > most_degrees
    far &= old.any(axis=1) & new.any(axis=1)
    if not far.any():
        return new.copy()
    one, two = (_unit(vectors[far].astype(np.float64)) for vectors in (old, new))
    across = two - (one * two).sum(1, keepdims=True) * one
    norm = np.linalg.norm(across, axis=1, keepdims=True)
    named = norm > 1e-6
    cap = np.radians(most_degrees)
    moved = np.where(named, np.cos(cap) * one + np.sin(cap) * across / np.where(named, norm, 1), one)
    result = new.copy()
    result[far] = moved * np.linalg.norm(new[far], axis=1, keepdims=True)
    return result


def degrees(old: NDArray[np.floating], new: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n,) angle between the vectors (n, D) of each row; 90 where one is zero."""
    cosine = (_unit(old.astype(np.float64)) * _unit(new.astype(np.float64))).sum(1)
    return np.asarray(np.degrees(np.arccos(np.clip(cosine, -1.0, 1.0))), np.float64)


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit: NDArray[np.float64] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


@dataclass(frozen=True)
class TextGuard:
    """Both measures as one.

    Attributes:
        most_degrees: see `limited`. most_words, most_repeats: see `sanitised`.
    """

    most_degrees: float = MOST_DEGREES
    most_words: int = 256
    most_repeats: int = 3

    @property
    def fingerprint(self) -> str:
        """Changes whenever the same text could get another vector."""
        return f"text-guard {_RULES} {self.most_degrees} {self.most_words} {self.most_repeats}"

    def clean(self, texts: list[str]) -> list[str]:
        """The texts, sanitised."""
        return [sanitised(text, most_words=self.most_words, most_repeats=self.most_repeats) for text in texts]

    def held(self, old: Float32, new: Float32) -> Float32:
        """(n, D) new vectors within the cap around the trusted ones (n, D)."""
        return limited(old, new, self.most_degrees)

    def vectors(self, old: Float32, texts: list[str], encode: Callable[[list[str]], Float32]) -> Float32:
        """(n, D) vectors of changed texts, given the trusted ones (n, D)."""
        return self.held(old, encode(self.clean(texts)))
