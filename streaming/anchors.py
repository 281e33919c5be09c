"""Anchors: the vector that an item's text had when its present encoder first read it.

A text that changes may move the item's vector only so far from there. The cap holds from the anchor and not from the
vector of before, so that many small edits reach no farther than one. What the cap is, the guard says, which is
handed in from above.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import lmdb
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from lmdb import _Database as Database

Float32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

_STAMP = 16  # bytes in front of a stored anchor: its encoder


class Guard(Protocol):
    """What a changed text may do."""

    @property
    def fingerprint(self) -> str:
        """Not empty; changes whenever the same text could get another vector."""
        ...

    def clean(self, texts: list[str]) -> list[str]:
        """The texts as the encoder should read them."""
        ...

    def held(self, old: Float32, new: Float32) -> Float32:
        """(N, D) new vectors within the cap around the old ones (N, D).

        A row that is within it, or whose old or new vector is zero, comes back as it is, bit for bit.
        """
        ...


class Anchors:
    """Two databases beside the vectors: the anchors, and the keys of items whose vector is at the cap.

    Args:
        env: the catalogue's, open for writing. Databases that an older store lacks are made.
    """

    def __init__(self, env: lmdb.Environment) -> None:
        self._env = env
        self._anchors: Database = env.open_db(b"anchors")
        self._held: Database = env.open_db(b"held")

    def hold(self, txn: Any, encoder: str, keys: Sequence[bytes], vectors: Float32, guard: Guard) -> Float32:
        """Within a transaction: the vectors (N, D) as they may be stored; a first one becomes the anchor.

        An anchor of another encoder holds nothing and is replaced. A vector of zeros is no anchor and moves none.
        """
        stamp = _stamp(encoder)
        trusted = np.zeros_like(vectors)
        for row, key in enumerate(keys):
            stored = txn.get(key, db=self._anchors)
            if stored and stored[:_STAMP] == stamp and len(stored) == _STAMP + vectors[row].nbytes:
                trusted[row] = np.frombuffer(stored, np.float32, offset=_STAMP)
        held = guard.held(trusted, vectors)
        first: Bools = np.logical_and(vectors.any(axis=1), ~trusted.any(axis=1))
        capped: Bools = np.any(np.not_equal(held, vectors), axis=1)
        for row, key in enumerate(keys):
            if first[row]:
                txn.put(key, stamp + vectors[row].tobytes(), db=self._anchors)
            if capped[row]:
                txn.put(key, b"", db=self._held)
            else:
                txn.delete(key, db=self._held)
        return held

    def drop(self, txn: Any, keys: Iterable[bytes]) -> None:
        """Within a transaction: the next vectors of these items are taken as they are."""
        for key in keys:
            txn.delete(key, db=self._anchors)
            txn.delete(key, db=self._held)

    def held_back(self) -> int:
        """Items whose vector is at the cap."""
        with self._env.begin(db=self._held) as txn:
            return int(txn.stat(self._held)["entries"])


def _stamp(encoder: str) -> bytes:
    return hashlib.blake2b(encoder.encode(), digest_size=_STAMP).digest()
