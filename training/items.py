"""From item hashes to rows: the id table's slots and the per-round table of items the model sees.

A *slot* is a row of the model's fixed-size id table, given to an item at first sight and taken back from the least
recently used one when the table is full. A *row* is an item's place in an :class:`ItemTable`: the catalogue plus
whatever else turned up in events, ordered by hash. Slots outlive rounds (they are in every checkpoint and bundle),
rows do not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError


class ItemSlots:
    """Least-recently-used allocation of ``capacity`` slots to item hashes.

    ``hashes[slot]`` is the item holding the slot (0 = free), ``used[slot]`` the tick of its last sight.
    """

    def __init__(self, capacity: int) -> None:
        self.hashes: NDArray[np.uint64] = np.zeros(capacity, dtype=np.uint64)
        self.used: NDArray[np.int64] = np.full(capacity, -1, dtype=np.int64)
        self._order: NDArray[np.int64] = np.argsort(self.hashes, kind="stable")

    @property
    def capacity(self) -> int:
        """Number of slots."""
        return len(self.hashes)

    def lookup(self, items: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Slots of ``items`` (n,) uint64; -1 where an item has none."""
        ordered = self.hashes[self._order]
        at = np.minimum(np.searchsorted(ordered, items), self.capacity - 1)
        found = (ordered[at] == items) & (items != 0)
        return np.where(found, self._order[at], -1)

    def touch(self, items: NDArray[np.uint64], tick: int) -> NDArray[np.int64]:
        """Give every distinct item of ``items`` a slot, most frequent first, and mark it used at ``tick``.

        Args:
            items: (n,) uint64, repeats allowed; 0 is ignored.
            tick: a number that grows from round to round.

        Returns:
            The slots that changed hands (int64): their learned rows belong to another item and must be reset.
            When more items turn up in one tick than there are slots, the rarest stay without.
        """
        distinct, counts = np.unique(items[items != 0], return_counts=True)
        slots = self.lookup(distinct)
        self.used[slots[slots >= 0]] = tick
        missing = distinct[slots < 0]
        missing = missing[np.argsort(-counts[slots < 0], kind="stable")]
        oldest = np.argsort(self.used, kind="stable")
        free = oldest[self.used[oldest] < tick][: len(missing)]
        recycled: NDArray[np.int64] = free[self.hashes[free] != 0]
        self.hashes[free] = missing[: len(free)]
        self.used[free] = tick
        self._order = np.argsort(self.hashes, kind="stable")
        return recycled

    def place(self, items: NDArray[np.uint64], slots: NDArray[np.int64], tick: int) -> None:
        """Put items into given slots, as a bundle lists them, marked used at ``tick``."""
        self.hashes[slots] = items
        self.used[slots] = tick
        self._order = np.argsort(self.hashes, kind="stable")

    @classmethod
    def from_state(cls, hashes: NDArray[np.uint64], used: NDArray[np.int64]) -> ItemSlots:
        """Rebuild from saved ``hashes`` and ``used`` (capacity,)."""
        slots = cls(len(hashes))
        slots.hashes, slots.used = hashes.astype(np.uint64), used.astype(np.int64)
        slots._order = np.argsort(slots.hashes, kind="stable")
        return slots


@dataclass(frozen=True)
class ItemTable:
    """The items of one round, ordered by hash.

    Attributes:
        hashes: (N,) uint64, ascending.
        slots: (N,) int64, -1 = text alone.
        text: (N, D) float32; zeros where an item has no text.
        ids: N names; "" for an item seen in events that the catalogue does not know.
    """

    hashes: NDArray[np.uint64]
    slots: NDArray[np.int64]
    text: NDArray[np.float32]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.hashes)

    def rows_of(self, items: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Rows of ``items``; raises :class:`DataError` on an item outside the table."""
        if len(items) == 0:
            return np.zeros(0, dtype=np.int64)
        at = np.minimum(np.searchsorted(self.hashes, items), max(len(self) - 1, 0))
        if len(self) == 0 or not np.array_equal(self.hashes[at], items):
            raise DataError("expected every item of the events in the item table; build it from these events")
        return at.astype(np.int64)


def build_table(
    slots: ItemSlots,
    catalog_hashes: NDArray[np.uint64],
    catalog_ids: list[str],
    catalog_vectors: NDArray[np.float32],
    seen: NDArray[np.uint64],
    text_dim: int,
) -> ItemTable:
    """The catalogue and every other item of ``seen`` (uint64, repeats allowed) as one table.

    Raises:
        DataError: the catalogue's text vectors are not ``text_dim`` wide (another text encoder filled it).
    """
    if len(catalog_hashes) and catalog_vectors.shape[1] not in {0, text_dim}:
        raise DataError(
            f"expected text vectors of width {text_dim}, the catalogue holds {catalog_vectors.shape[1]}: the text "
            "encoder changed under a trained model; start a new data directory or set the old encoder again"
        )
    others = np.setdiff1d(seen, catalog_hashes)
    others = others[others != 0]
    hashes = np.concatenate([catalog_hashes.astype(np.uint64), others])
    order = np.argsort(hashes, kind="stable")
    text = np.zeros((len(hashes), text_dim), dtype=np.float32)
    if len(catalog_hashes) and catalog_vectors.shape[1]:
        text[: len(catalog_hashes)] = catalog_vectors
    names = np.array([*catalog_ids, *([""] * len(others))], dtype=object)
    return ItemTable(hashes[order], slots.lookup(hashes[order]), text[order], names[order].tolist())
