"""The table of items a replica knows: the bundle's and the catalogue's, merged, ascending by hash.

The bundle says what the model has learned about an item, the catalogue says whether it exists now and what
it is called. An item of the catalogue that the bundle has not seen has a text vector only; an item of the
bundle that the catalogue has dropped stays in the table, so that it can still be read in a user's history,
but is not available. Where there is no catalogue at all, the bundle's items count as available.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from serving.user_encoder import Floats, UserEncoder
from streaming.catalog import CatalogSnapshot
from streaming.hashing import UInt64, hash_one
from streaming.rows import Int64
from training.bundle import Bundle

Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Learned:
    """What a bundle knows of M items, the nameless ones of histories included; ascending by hash."""

    bundle: Bundle
    created_s: float  # when it was made, epoch s
    hashes: UInt64  # (M,)
    names: list[str]  # M ids; empty for items that no catalogue knew
    vectors: Floats  # (M, d) unit vectors
    popularity: Floats  # (M,) share of recent events
    encoder: UserEncoder

    @classmethod
    def of(cls, bundle: Bundle, threads: int = 1) -> "Learned":
        """Put a verified bundle's items in order; ``threads`` of one forward pass."""
        hashes = np.concatenate([bundle.item_hashes, bundle.history_hashes])
        order = np.argsort(hashes, kind="stable")
        nameless = len(bundle.history_hashes)
        names = bundle.item_ids + [""] * nameless
        popularity = np.concatenate([bundle.popularity, np.zeros(nameless, np.float32)])
        created_s = bundle.lineage.get("created_at", bundle.path.stat().st_mtime)
        return cls(
            bundle=bundle,
            created_s=float(created_s),
            hashes=hashes[order],
            names=[names[row] for row in order],
            vectors=np.concatenate([bundle.item_vectors, bundle.history_vectors])[order],
            popularity=popularity[order],
            encoder=UserEncoder(bundle.model, threads),
        )


@dataclass(frozen=True)
class ItemTable:
    """N items; a *row* is a position in it."""

    hashes: UInt64  # (N,) ascending
    ids: list[str]  # empty for an item that is known from histories only
    titles: list[str]
    available: Bools  # (N,) may be recommended, as far as the catalogue goes
    learned_rows: Int64  # (N,) row in `Learned`, -1: not in it
    catalog_rows: Int64  # (N,) row in the catalogue, -1: not in it

    def __len__(self) -> int:
        return len(self.hashes)

    def rows_of(self, hashes: UInt64) -> Int64:
        """Find items by hash: (n,) rows, -1 for unknown ones."""
        return find(self.hashes, hashes)

    def rows_named(self, ids: Sequence[str]) -> Int64:
        """Find items by id: (n,) rows, -1 for unknown ones."""
        return self.rows_of(np.array([hash_one(item) for item in ids], np.uint64))


def find(ascending: UInt64, wanted: UInt64) -> Int64:
    """Positions of `wanted` in `ascending`, -1 where absent."""
    if not len(ascending):
        return np.full(len(wanted), -1, np.int64)
    place = np.minimum(np.searchsorted(ascending, wanted), len(ascending) - 1)
    return np.where(ascending[place] == wanted, place, -1)


def merge(catalog: CatalogSnapshot, model: Learned | None) -> ItemTable:
    """Merge the catalogue with the items of a bundle."""
    learned = model.hashes if model else np.empty(0, np.uint64)
    names: Sequence[str] = model.names if model else ()
    hashes = np.union1d(catalog.hashes, learned).astype(np.uint64)
    catalog_rows, learned_rows = find(catalog.hashes, hashes), find(learned, hashes)
    listed = catalog_rows >= 0
    if len(catalog.hashes):
        available = listed.copy()
        available[listed] = catalog.available[catalog_rows[listed]]
    else:
        available = np.array([bool(names[row]) for row in learned_rows], bool)
    rows = list(zip(catalog_rows.tolist(), learned_rows.tolist(), strict=True))
    ids = [catalog.ids[c] if c >= 0 else names[m] for c, m in rows]
    titles = [catalog.titles[c] or catalog.ids[c] if c >= 0 else names[m] for c, m in rows]
    return ItemTable(hashes, ids, titles, available, learned_rows, catalog_rows)
