"""What documents look like: for every path how often it is there, of what kind, and with which values.

Bounded for any input: paths deeper than `MAX_DEPTH` are not followed, further paths than `MAX_PATHS` not listed, and
of a path's values `MAX_VALUES` distinct ones are told apart.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

MAX_DEPTH = 12
MAX_PATHS = 300
MAX_VALUES = 2000
_MAX_TEXT = 300  # characters of a value that are kept

_ISO_START = re.compile(r"\d{4}-\d\d-\d\d")
_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?", re.ASCII)
_KINDS: tuple[tuple[type | tuple[type, ...], str], ...] = (
    (bool, "true/false"),
    (int, "integer"),
    ((float, Decimal), "number"),
    ((str, UUID), "text"),
    (datetime, "time"),
    (list, "list"),
    (dict, "object"),
)  # the first that fits: a bool is an int
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
_SEPARATOR = re.compile(r"[^a-z0-9]+")


@dataclass
class PathShape:
    """The values at one path. A step `name[]` goes into a list's first element, where no setting can point."""

    path: str
    count: int = 0  # documents that have it, and not null
    kinds: Counter[str] = field(default_factory=Counter)  # text, integer, number, true/false, list, object
    values: Counter[str] = field(default_factory=Counter)
    times: Counter[str] = field(default_factory=Counter)  # what the values would be as times
    example: str = ""

    @property
    def kind(self) -> str:
        """Its kinds, the most frequent first."""
        return " or ".join(kind for kind, _ in self.kinds.most_common())

    @property
    def distinct(self) -> int:
        """Number of distinct values, `MAX_VALUES` at most."""
        return len(self.values)

    @property
    def unique(self) -> bool:
        """Whether hardly any value comes twice (a producer's repeats aside)."""
        return self.count > 0 and self.distinct >= 0.95 * min(self.count, MAX_VALUES)

    @property
    def numeric_text(self) -> bool:
        """Whether all values are texts that spell a number."""
        return self.kinds["text"] == self.count > 0 and all(map(_NUMBER.fullmatch, self.values))

    @property
    def mappable(self) -> bool:
        """Whether a setting can name it: no list on the way, no empty step, valid text."""
        return "[]" not in self.path and is_plain(self.path) and all(self.path.split("."))

    def add(self, value: Any) -> None:
        """Count one more value."""
        self.count += 1
        self.kinds[kind_of_value(value)] += 1
        if isinstance(value, list | dict):
            return
        text = str(value)
        self.example = self.example or text[:_MAX_TEXT]
        if len(self.values) < MAX_VALUES or text[:_MAX_TEXT] in self.values:
            self.values[text[:_MAX_TEXT]] += 1
        if not isinstance(value, bool):
            self.times[kind_of_time(value)] += 1


def shapes_of(documents: Iterable[Any]) -> list[PathShape]:
    """Describe documents, path by path, in the order in which they were met; what is no object is passed over."""
    shapes: dict[str, PathShape] = {}
    for document in documents:
        if isinstance(document, dict):
            for path, value in _leaves(document):
                if path in shapes or len(shapes) < MAX_PATHS:
                    shapes.setdefault(path, PathShape(path)).add(value)
    return list(shapes.values())


def _leaves(document: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
    stack: list[tuple[str, Any, int]] = [("", document, 0)]
    while stack:
        path, node, depth = stack.pop()
        if isinstance(node, dict) and (node or not path) and depth < MAX_DEPTH:
            inner = [
                (f"{path}.{step}" if path else str(step), value, depth + 1)
                for step, value in node.items()
                if "." not in str(step)  # a path of settings could not tell such a name from two steps
            ]
            stack += reversed(inner)
            continue
        if node is not None:
            yield path, node
        if isinstance(node, list) and node and isinstance(node[0], dict):
            stack.append((f"{path}[]", node[0], depth + 1))


def kind_of_value(value: Any) -> str:
    """The kind of a value of JSON or Avro, for people."""
    return next((name for types, name in _KINDS if isinstance(value, types)), type(value).__name__)


def kind_of_time(value: Any) -> str:
    """What a value would be as a time: `ISO 8601`, `epoch ms`, `epoch s`, `epoch µs`, `epoch ns`, `text`, or nothing.

    Told by size: as seconds, milliseconds and so on since 1970, dates from 1973 to 2286 do not overlap.
    """
    if isinstance(value, datetime):
        return "ISO 8601"  # Avro's own
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
            return "ISO 8601" if _ISO_START.match(value) else ""
        except ValueError:
            if _ISO_START.match(value):
                return "text"
            return "numeric text" if value.isascii() and value.isdigit() and 9 <= len(value) <= 19 else ""
    if isinstance(value, int | float) and math.isfinite(value):
        for name, smallest in (("epoch ns", 1e17), ("epoch µs", 1e14), ("epoch ms", 1e11), ("epoch s", 1e8)):
            if smallest <= value < smallest * 100:
                return name
    return ""


def words(name: str) -> list[str]:
    """The words of a name in lower case: `productId`, `product_id` and `Product ID` are `product`, `id`."""
    return [word for word in _SEPARATOR.split(_CAMEL.sub(" ", name).lower()) if word]


def is_plain(text: str) -> bool:
    """Whether a text can be written down: it holds no half surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
