"""What filters and rules read of the items, by columns: one field of all N items, built when first asked for.

A field is built in (`conditions.BUILT_IN`) or an attribute of the catalogue, whose values are numbers, booleans,
texts or lists of texts; values of any other kind count as absent. One attribute may be a number for one item and a
text for another, so a column holds a part for each kind. Texts are kept as an index from each distinct text to the
rows that have it: to look for one text, or for a range of them, is to cut a slice.
"""

import threading
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import repeat
from operator import contains
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.conditions import BUILT_IN, Value
from serving.items import Bools, ItemTable
from streaming.catalog import CatalogSnapshot
from streaming.rows import Int64

Float64 = npt.NDArray[np.float64]
Int8 = npt.NDArray[np.int8]

_REMEMBERED = 64  # results per snapshot: at 100,000 items 6 MB


@dataclass(frozen=True)
class Column:
    """One field of N items; what an item has none of is absent.

    Attributes:
        numbers: (N,) NaN where absent. flags: (N,) 1, 0, or -1 where absent. Each None if no item has one.
        words: V distinct texts, ascending by code point.
        starts, rows: (V + 1,) and (T,); word v is in the rows ``rows[starts[v]:starts[v + 1]]``.
        present: (N,) the items that have a value.
    """

    numbers: Float64 | None
    flags: Int8 | None
    words: list[str]
    starts: Int64
    rows: Int64
    present: Bools

    def none(self) -> Bools:
        """(N,) no item."""
        return np.zeros(len(self.present), bool)

    def kinds(self) -> list[str]:
        """What values there are, in words."""
        held = (("numbers", self.numbers is not None), ("true/false", self.flags is not None))
        return [name for name, there in (*held, ("texts", bool(self.words))) if there]

    def equal_to(self, value: Value) -> Bools:
        """(N,) the items that have this value."""
        if isinstance(value, str):
            return self.between(bisect_left(self.words, value), bisect_right(self.words, value))
        values = self.flags if isinstance(value, bool) else self.numbers
        return self.none() if values is None else values == value

    def between(self, first: int, last: int) -> Bools:
        """(N,) the items that have one of the words ``first`` to ``last - 1``."""
        found = self.none()
        found[self.rows[self.starts[first] : self.starts[last]]] = True
        return found

    def containing(self, part: str) -> Bools:
        """(N,) the items with a text that holds ``part``, upper and lower case alike."""
        hits = np.fromiter(map(contains, self._folded, repeat(part.casefold())), bool, len(self.words))
        found = self.none()
        found[self.rows[np.repeat(hits, np.diff(self.starts))]] = True
        return found

    def pairs(self) -> tuple[Int64, Int64]:
        """All texts of all items, as (T,) rows and (T,) words."""
        return self.rows, np.repeat(np.arange(len(self.words)), np.diff(self.starts))

    @cached_property
    def _folded(self) -> list[str]:
        return [word.casefold() for word in self.words]


class ItemColumns:
    """The fields of one snapshot's items; safe to share between threads.

    Two threads may build the same column at once; they build the same one, and one of them stays.

    Args:
        catalog: what the attributes are read from.
        table: N items, made from that catalogue.
    """

    def __init__(self, catalog: CatalogSnapshot, table: ItemTable) -> None:
        self._catalog, self._table = catalog, table
        listed = np.flatnonzero(table.catalog_rows >= 0)
        self._rows = np.empty(len(catalog), np.int64)  # of each item of the catalogue
        self._rows[table.catalog_rows[listed]] = listed
        self._built_in: dict[str, Column] = {}
        self._attributes: dict[str, Column] = {}
        self._results: OrderedDict[Hashable, Bools] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._table)

    @cached_property
    def names(self) -> list[str]:
        """The attributes that items have, most frequent first."""
        counts: dict[str, int] = {}
        for attributes in self._catalog.attributes:
            for name in attributes:
                counts[name] = counts.get(name, 0) + 1
        return sorted(counts, key=lambda name: (-counts[name], name))

    def row_of(self, item_id: str) -> int | None:
        """The row of an item; None for an unknown one."""
        [row] = self._table.rows_named([item_id]).tolist()
        return row if row >= 0 else None

    def built_in(self, name: str) -> Column:
        """One of `conditions.BUILT_IN`."""
        if name not in self._built_in:
            self._built_in[name] = self._make_built_in(name)
        return self._built_in[name]

    def attribute(self, name: str) -> Column | None:
        """An attribute of the catalogue; None where no item has it."""
        if name not in self._attributes:
            if name not in self.names:
                return None
            values = [attributes.get(name) for attributes in self._catalog.attributes]
            self._attributes[name] = _column(values, self._rows, len(self))
        return self._attributes[name]

    def field(self, name: str) -> Column | None:
        """A built-in field, else an attribute of this name; None where there is neither."""
        return self.built_in(name) if name in BUILT_IN else self.attribute(name)

    def warm(self, before: "ItemColumns") -> None:
        """Build the columns that were in use in an earlier snapshot, so that no request waits for them."""
        for name in list(before._built_in):
            self.built_in(name)
        for name in list(before._attributes):
            self.attribute(name)

    def remembered(self, key: Hashable, make: Callable[[], Bools]) -> Bools:
        """(N,) the result of ``make``, read-only; the newest results are kept by key."""
        with self._lock:
            if key in self._results:
                self._results.move_to_end(key)
                return self._results[key]
        found = make()
        found.flags.writeable = False
        with self._lock:
            self._results[key] = found
            if len(self._results) > _REMEMBERED:
                self._results.popitem(last=False)
        return found

    def _make_built_in(self, name: str) -> Column:
        table, everywhere = self._table, np.arange(len(self))
        if name == "category":
            return _column(self._catalog.categories, self._rows, len(self))
        if name == "available":
            return _flags(table.available)
        if name == "new":
            return _flags(table.learned_rows < 0)
        told = table.titles if name == "title" else table.ids
        return _column([text or None for text in told], everywhere, len(self))


def _flags(values: Bools) -> Column:
    nothing = np.empty(0, np.int64)
    return Column(
        None, values.astype(np.int8), [], np.zeros(1, np.int64), nothing, np.ones(len(values), bool)
    )


def _column(values: Sequence[Any], rows: Int64, count: int) -> Column:
    """The column of ``count`` items, of which those in ``rows`` (n,) have the n values."""
    kinds = set(map(type, values))
    numbers, flags = None, None
    if kinds & {int, float}:
        numbers = np.full(count, np.nan)
        numbers[rows] = [value if type(value) is float else _number(value) for value in values]
    if bool in kinds:
        flags = np.full(count, -1, np.int8)
        flags[rows] = [value if type(value) is bool else -1 for value in values]
    words, starts, owners = _texts(values, rows) if kinds & {str, list, tuple} else _texts((), rows)
    present = np.zeros(count, bool)
    present[owners] = True
    if numbers is not None:
        present |= ~np.isnan(numbers)
    if flags is not None:
        present |= flags >= 0
    return Column(numbers, flags, words, starts, owners, present)


def _number(value: Any) -> float:
    if type(value) is not int:
        return np.nan
    try:
        return float(value)
    except OverflowError:
        return np.inf if value > 0 else -np.inf


def _texts(values: Sequence[Any], rows: Int64) -> tuple[list[str], Int64, Int64]:
    """Distinct texts, and which rows have each: see `Column`."""
    owners, texts = [], []
    for place, value in enumerate(values):
        if type(value) is str:
            owners.append(place)
            texts.append(value)
        elif isinstance(value, list | tuple):
            for text in {one for one in value if type(one) is str}:
                owners.append(place)
                texts.append(text)
    words = sorted(set(texts))
    code = {word: number for number, word in enumerate(words)}
    codes = np.fromiter(map(code.__getitem__, texts), np.int64, len(texts))
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(len(words) + 1))
    return words, starts, rows[np.array(owners, np.int64)[order]]
