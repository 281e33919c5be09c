"""What a filter is made of, and how each part finds its rows in columns. Texts are turned into these by `filters`.

An item without a value meets no comparison, ``!=`` neither; ``not`` turns whatever stands behind it into its
opposite. A field with several values meets a comparison if one of them does; ``!=`` is the opposite of ``=`` among
the items that have a value, so it asks that none of them is.
"""

import difflib
import operator
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # filters are read with the settings, which stay light
    from serving.columns import Column, ItemColumns
    from streaming.rows import Bools

BUILT_IN = ("item_id", "title", "category", "available", "new")

Value = str | float | bool
_ORDERS: dict[str, Callable[[Any, float], Any]] = {
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
OPERATORS = ("=", "!=", *_ORDERS, "~")
_KINDS = {str: "texts", float: "numbers", bool: "true/false"}
_NAMED = 10  # attributes that an error names


class FilterError(ValueError):
    """A filter that cannot be read, or asks for what no item has.

    Args:
        at: place in the text of the filter, counted from 0.
        detail: what was expected and what was seen.
    """

    def __init__(self, at: int, detail: str) -> None:
        super().__init__(f"at character {at + 1}: {detail}")
        self.at = at


class Condition(Protocol):
    """Anything that N items meet or do not."""

    def rows(self, columns: "ItemColumns") -> "Bools":
        """(N,) the items that meet it.

        Raises:
            FilterError: it asks for a field, or a kind of value, that no item has.
        """
        ...


@dataclass(frozen=True)
class Field:
    """A field by its name; in quotes it is an attribute even where a built-in field has the same name."""

    name: str
    quoted: bool
    at: int

    def column(self, columns: "ItemColumns") -> "Column":
        """The values; raises `FilterError` where there is no such field."""
        column = columns.attribute(self.name) if self.quoted else columns.field(self.name)
        if column is None:
            raise FilterError(self.at, unknown(self.name, columns))
        return column

    def column_of(self, columns: "ItemColumns", value: Value) -> "Column":
        """The values, of which some are of the kind of ``value``; raises `FilterError` where none is."""
        column, kind = self.column(columns), _KINDS[type(value)]
        kinds = column.kinds()
        if kinds and kind not in kinds:
            raise FilterError(
                self.at, f"{self.name} holds {' and '.join(kinds)}, but is compared with {kind}"
            )
        return column


def unknown(name: str, columns: "ItemColumns") -> str:
    """Say that no item has a field, and which there are instead."""
    near = difflib.get_close_matches(name, [*BUILT_IN, *columns.names], n=3)
    meant = f"; did you mean {' or '.join(near)}?" if near else ""
    shown, more = columns.names[:_NAMED], len(columns.names) - _NAMED
    attributes = ", ".join(shown) + (f" and {more} more" if more > 0 else "") if shown else "none"
    return (
        f"no item has an attribute {name[:60]!r}{meant} "
        f"(attributes: {attributes}; built in: {', '.join(BUILT_IN)})"
    )


@dataclass(frozen=True)
class Compare:
    """``price < 10``, ``category = "Comedy"``, ``title ~ "star"``."""

    field: Field
    operator: str
    value: Value

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        column = self.field.column_of(columns, self.value)
        if self.operator == "!=":
            return column.present & ~column.equal_to(self.value)
        if self.operator == "=":
            return column.equal_to(self.value)
        if isinstance(self.value, str):
            return _compare_texts(column, self.operator, self.value)
        if column.numbers is None:
            return column.none()
        found: Bools = _ORDERS[self.operator](column.numbers, self.value)
        return found


def _compare_texts(column: "Column", sign: str, value: str) -> "Bools":
    below, upto = bisect_left(column.words, value), bisect_right(column.words, value)
    if sign == "~":
        return column.containing(value)
    first, last = {
        "<": (0, below),
        "<=": (0, upto),
        ">": (upto, len(column.words)),
        ">=": (below, len(column.words)),
    }[sign]
    return column.between(first, last)


@dataclass(frozen=True)
class Among:
    """``brand in ("a", "b")``: the same as ``brand = "a" or brand = "b"``."""

    field: Field
    values: tuple[Value, ...]

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        found = self.field.column(columns).none()
        for value in self.values:
            found |= self.field.column_of(columns, value).equal_to(value)
        return found


@dataclass(frozen=True)
class Flag:
    """``available``: short for ``available = true``."""

    field: Field

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        return self.field.column_of(columns, True).equal_to(True)


@dataclass(frozen=True)
class Exists:
    """``exists(price)``: the item has a value."""

    field: Field

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        return self.field.column(columns).present.copy()


@dataclass(frozen=True)
class Not:
    """``not …``."""

    inner: Condition

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        return ~self.inner.rows(columns)


@dataclass(frozen=True)
class And:
    """``… and …``."""

    parts: tuple[Condition, ...]

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        found = self.parts[0].rows(columns)
        for part in self.parts[1:]:
            found = found & part.rows(columns)
        return found


@dataclass(frozen=True)
class Or:
    """``… or …``."""

    parts: tuple[Condition, ...]

    def rows(self, columns: "ItemColumns") -> "Bools":
        """See `Condition.rows`."""
        found = self.parts[0].rows(columns)
        for part in self.parts[1:]:
            found = found | part.rows(columns)
        return found
