"""Filters: a small language for which items may be shown, read once and then applied to columns of all items.

    category = "Comedy" and price < 10 and not brand in ("a", "b")

    or         = and { "or" and }
    and        = not { "and" not }
    not        = "not" not | "(" or ")" | "exists" "(" field ")" | term
    term       = field [ comparison value | "in" "(" value { "," value } ")" ]
    comparison = "=" | "!=" | "<" | "<=" | ">" | ">=" | "~"
    field      = name | quoted text         a quoted one is always an attribute
    value      = quoted text | number | "true" | "false"

What the parts mean is told in `serving.conditions`. There is nothing to call and nothing to loop with, and length,
depth and number of terms are bounded, so a text from outside costs little whatever it says. A parser of some 100
lines by hand is chosen over a parser generator because its errors can say what was expected in plain words.
"""

import math
import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

from serving.conditions import (
    OPERATORS,
    Among,
    And,
    Compare,
    Condition,
    Exists,
    Field,
    FilterError,
    Flag,
    Not,
    Or,
    Value,
)

if TYPE_CHECKING:
    from serving.columns import ItemColumns
    from streaming.rows import Bools

MAX_LENGTH = 1000  # characters
MAX_DEPTH = 20  # "(" and "not" within each other
MAX_TERMS = 100  # comparisons, and values in lists
MAX_SEARCHES = 5  # "~", which looks into every text: some 6 ms for 100,000

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
    | (?P<number>-?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])
    | (?P<name>[^\W\d]\w*)
    | (?P<sign><=|>=|!=|[=<>~(),])
    )""",
    re.VERBOSE | re.DOTALL,
)
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_WORDS = ("and", "or", "not", "in", "exists", "true", "false")
_EXAMPLE = 'for example: category = "Comedy" and price < 10'


@dataclass(frozen=True)
class Filter:
    """A filter that has been read; two of the same text are equal."""

    text: str
    condition: Condition = field(compare=False, repr=False)

    def rows(self, columns: "ItemColumns") -> "Bools":
        """(N,) the items that meet it, read-only; remembered by the columns.

        Raises:
            FilterError: it asks for a field, or a kind of value, that no item has.
        """
        return columns.remembered(self, lambda: self.condition.rows(columns))


@lru_cache(maxsize=1024)
def parse(text: str) -> Filter:
    """Read a filter.

    Raises:
        FilterError: it is not of the language, or past its bounds.
    """
    if len(text) > MAX_LENGTH:
        raise FilterError(MAX_LENGTH, f"a filter has at most {MAX_LENGTH} characters, this one {len(text)}")
    return Filter(text, _Parser(_tokens(text)).whole())


@dataclass(frozen=True)
class _Token:
    kind: str  # text, number, name, sign or end
    told: str  # as it stands in the filter; keywords in lower case
    at: int

    def __str__(self) -> str:
        return "the end" if self.kind == "end" else self.told[:60]


def _tokens(text: str) -> list[_Token]:
    found, at, end = [], 0, len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            raise FilterError(at, f"cannot read {text[at : at + 20]!r}; {_EXAMPLE}")
        told, at = match[match.lastgroup], match.start(match.lastgroup)
        if match.lastgroup == "name" and told.lower() in _WORDS:
            told = told.lower()
        found.append(_Token(match.lastgroup, told, at))
        at = match.end()
    return [*found, _Token("end", "", end)]


def _unquoted(token: _Token) -> str:
    return _ESCAPED.sub(r"\1", token.told[1:-1])


class _Parser:
    """Recursive descent; one method per rule of the grammar."""

    def __init__(self, tokens: list[_Token]) -> None:
        self._tokens, self._place, self._terms, self._searches = tokens, 0, 0, 0

    def whole(self) -> Condition:
        condition = self._or(0)
        if self._next.kind != "end":
            raise self._wrong("and, or, or the end")
        return condition

    def _or(self, depth: int) -> Condition:
        parts = [self._and(depth)]
        while self._take("or"):
            parts.append(self._and(depth))
        return parts[0] if len(parts) == 1 else Or(tuple(parts))

    def _and(self, depth: int) -> Condition:
        parts = [self._not(depth)]
        while self._take("and"):
            parts.append(self._not(depth))
        return parts[0] if len(parts) == 1 else And(tuple(parts))

    def _not(self, depth: int) -> Condition:
        if depth > MAX_DEPTH:
            raise FilterError(self._next.at, f"a filter is nested at most {MAX_DEPTH} deep")
        if self._take("not"):
            return Not(self._not(depth + 1))
        if self._take("("):
            inner = self._or(depth + 1)
            self._expect(")", "and, or, or )")
            return inner
        if self._take("exists"):
            self._count()
            self._expect("(", "(")
            inner = Exists(self._field())
            self._expect(")", ")")
            return inner
        return self._term()

    def _term(self) -> Condition:
        self._count()
        name = self._field()
        if self._take("in"):
            return self._among(name)
        sign = self._next
        if sign.told not in OPERATORS or sign.kind != "sign":
            if sign.told in ("and", "or", ")", "") and sign.kind != "text":
                return Flag(name)
            raise self._wrong(f"a comparison ({' '.join(OPERATORS)} in)")
        self._place += 1
        at, value = self._next.at, self._value()
        if sign.told == "~":
            self._searches += 1
            if self._searches > MAX_SEARCHES:
                raise FilterError(sign.at, f"a filter has at most {MAX_SEARCHES} ~")
            if not isinstance(value, str):
                raise FilterError(at, f"expected a text behind ~, got {value}")
        if isinstance(value, bool) and sign.told not in ("=", "!="):
            raise FilterError(sign.at, f"expected = or != before true and false, got {sign.told}")
        return Compare(name, sign.told, value)

    def _among(self, name: Field) -> Condition:
        self._expect("(", "( and the values")
        values = [self._value()]
        while self._take(","):
            self._count()
            values.append(self._value())
        self._expect(")", ", or )")
        return Among(name, tuple(values))

    def _field(self) -> Field:
        token = self._next
        if token.kind == "text" and len(token.told) > 2:
            self._place += 1
            return Field(_unquoted(token), True, token.at)
        if token.kind == "name" and token.told not in _WORDS:
            self._place += 1
            return Field(token.told, False, token.at)
        raise self._wrong(
            "the name of a field" if token.kind != "name" else "a field (names like this in quotes)"
        )

    def _value(self) -> Value:
        token = self._next
        if token.kind == "text":
            value: Value = _unquoted(token)
        elif token.kind == "number" and math.isfinite(float(token.told)):
            value = float(token.told)
        elif token.told in ("true", "false") and token.kind == "name":
            value = token.told == "true"
        else:
            raise self._wrong('a value ("text", number, true or false)')
        self._place += 1
        return value

    @property
    def _next(self) -> _Token:
        return self._tokens[self._place]

    def _take(self, told: str) -> bool:
        """Go past the next token if it is this keyword or sign."""
        token = self._next
        if token.kind not in ("name", "sign") or token.told != told:
            return False
        self._place += 1
        return True

    def _expect(self, told: str, expected: str) -> None:
        if not self._take(told):
            raise self._wrong(expected)

    def _count(self) -> None:
        self._terms += 1
        if self._terms > MAX_TERMS:
            raise FilterError(
                self._next.at, f"a filter has at most {MAX_TERMS} comparisons and values in lists"
            )

    def _wrong(self, expected: str) -> FilterError:
        return FilterError(self._next.at, f"expected {expected}, got {self._next}; {_EXAMPLE}")
