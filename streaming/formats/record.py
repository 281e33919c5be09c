"""One record at a time, in Python: its row, or the reason a person can act on.

The readers over columns accept what is plainly right, a thousand records at a time; whatever they do not
accept comes here and is judged by these rules alone, so that the answer does not depend on a record's
neighbours. Some 8 µs per record, 20 times the price of a column's.
"""

import json
import re
from collections.abc import Mapping as AnyMapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from streaming.formats.mapping import (
    RECORD_TIME,
    Bounds,
    Mapping,
    check_label,
    check_text,
    check_value,
    epoch_ms,
    glimpse,
)
from streaming.rows import FORGET, NO_CATEGORY

MAX_DEPTH = 200  # Python's parser recurses, and gives up at 1000 frames including its caller's
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
# a string, also one that never ends: each byte is looked at once, whatever stands in it
_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z)', re.DOTALL)
_STRING_OR_INF = re.compile(r'("[^"\\]*(?:\\.[^"\\]*)*(?:"|\\?\Z))|-NaN|Inf(?:inity)?', re.DOTALL)


class RecordError(ValueError):
    """A record is not an event; the message is the reason for the dead letter."""


@dataclass(frozen=True)
class Row:
    """An event by its own names, not yet hashed."""

    user: str
    item: str | None  # None: an erasure
    event_id: str | None
    code: int
    time_ms: int
    value: float
    category: int


def read_row(mapping: Mapping, document: AnyMapping[str, Any], record_ms: int, bounds: Bounds) -> Row:
    """Make a row of a parsed record.

    Args:
        document: the record; nested objects as dicts.
        record_ms: the Kafka record's own timestamp.

    Raises:
        RecordError: with the path of the offending field.
    """
    user = _label(mapping, document, "user_id", required=True)
    code = _code(mapping, document)
    time_ms = _time(mapping, document, record_ms, bounds)
    event_id = _label(mapping, document, "event_id")
    if code == FORGET:
        return Row(str(user), None, event_id, code, time_ms, 0.0, NO_CATEGORY)
    item = _label(mapping, document, "item_id", required=True)
    return Row(
        str(user), item, event_id, code, time_ms, _value(mapping, document), _category(mapping, document)
    )


def tombstone_row(mapping: Mapping, key: bytes | None, record_ms: int, bounds: Bounds) -> Row:
    """Make the erasure that a record with a key and no value asks for.

    Raises:
        RecordError: the key does not name a user, or the record's time is not to be believed.
    """
    if key is None:
        raise RecordError("expected a value, or a key that names the user to forget; got neither")
    try:
        user = key.decode()
        check_label(user, mapping.max_id_length)
    except UnicodeDecodeError as error:
        raise RecordError(f"key of a tombstone: not UTF-8: {error.reason} at byte {error.start}") from None
    except ValueError as error:
        raise RecordError(f"key of a tombstone: {error}") from None
    if not bounds.hold(record_ms):
        raise RecordError(f"timestamp of the Kafka record: {bounds.objection(record_ms)}")
    return Row(user, None, None, FORGET, record_ms, 0.0, NO_CATEGORY)


def parse_json(value: bytes, max_bytes: int) -> dict[str, Any]:
    """Parse a JSON record.

    `NaN` and infinities are read as numbers, as most producers' libraries write them.

    Raises:
        RecordError: it is not one JSON object of a bearable size and depth in UTF-8.
    """
    check_size(value, max_bytes)
    line = value.removeprefix(_BOM).strip(_BLANK)
    if not line.startswith(b"{"):
        raise RecordError(f"expected a JSON object, got {glimpse(line)}")
    if is_deep(line):
        raise RecordError(f"nested deeper than {MAX_DEPTH} levels")
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise RecordError(f"not UTF-8: {error.reason} at byte {error.start}") from None
    try:
        return _load(text)
    except json.JSONDecodeError as error:
        first = error
    except RecursionError:
        raise RecordError(f"nested deeper than {MAX_DEPTH} levels") from None
    try:
        return _load(_STRING_OR_INF.sub(_python_spelling, text))
    except (json.JSONDecodeError, RecursionError):
        raise RecordError(f"not JSON: {first}") from None


def check_size(value: bytes, max_bytes: int) -> None:
    """Refuse a record that is too large to be looked at."""
    if len(value) > max_bytes:
        raise RecordError(
            f"larger than {max_bytes} bytes (setting streaming.max_record_bytes), got {len(value)} bytes"
        )


def is_deep(line: bytes) -> bool:
    """Whether objects and arrays are nested beyond `MAX_DEPTH`. Few records are long enough to be counted."""
    if len(line) < MAX_DEPTH or line.count(b"{") + line.count(b"[") <= MAX_DEPTH:
        return False
    marks = np.frombuffer(_STRING.sub(b"", line), np.uint8)
    opening = (marks == ord("{")) | (marks == ord("["))
    closing = (marks == ord("}")) | (marks == ord("]"))
    depth = np.cumsum(opening.astype(np.int64) - closing)
    return bool(depth.max(initial=0) > MAX_DEPTH)


def dig(document: Any, path: str) -> Any:
    """Follow a dotted path; None where it leads nowhere.

    Raises:
        RecordError: a name on the way is given twice, so that readers would differ about its value.
    """
    for step in path.split("."):
        if not isinstance(document, dict):
            return None
        if isinstance(document, _Ambiguous) and step in document.twice:
            raise RecordError(f"field {path}: {step!r} is given twice in one object")
        document = document.get(step)
    return document


class Huge(str):
    """An integer beyond 18 digits, as it is spelt: an id may be one, a time may not."""

    __slots__ = ()


class _Ambiguous(dict[str, Any]):
    """An object in which some names are given twice."""

    twice: frozenset[str]


def _load(text: str) -> dict[str, Any]:
    document = json.loads(text, parse_int=_integer, object_pairs_hook=_object)
    if not isinstance(document, dict):
        raise RecordError(f"expected a JSON object, got {glimpse(document)}")
    return document


def _integer(digits: str) -> int | Huge:
    return int(digits) if len(digits) <= 18 else Huge(digits)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    plain = dict(pairs)
    if len(plain) == len(pairs):
        return plain
    ambiguous, seen = _Ambiguous(plain), set[str]()
    ambiguous.twice = frozenset(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    return ambiguous


def _python_spelling(match: re.Match[str]) -> str:
    """The reader over columns takes a few spellings that Python's does not."""
    return match[1] or ("NaN" if "N" in match[0] else "Infinity")


def _label(
    mapping: Mapping, document: AnyMapping[str, Any], field: str, *, required: bool = False
) -> str | None:
    path = mapping.paths.get(field)
    found = None if path is None else _text(path, dig(document, path))
    if found is None:
        stand_in: str | None = mapping.stand_in(field)
        if stand_in is None and required:
            raise RecordError(f"field {path}: missing or null")
        return stand_in
    try:
        check_label(found, mapping.max_id_length)
    except ValueError as error:
        raise RecordError(f"field {path}: {error}") from None
    return found


def _text(path: str, value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        return str(value)
    if (isinstance(value, int) and not isinstance(value, bool)) or isinstance(value, UUID):
        return str(value)
    raise RecordError(f"field {path}: expected a string or an integer, got {glimpse(value)}")


def _code(mapping: Mapping, document: AnyMapping[str, Any]) -> int:
    path = mapping.paths.get("type")
    found = None if path is None else _text(path, dig(document, path))
    code = mapping.stand_in("type") if found is None else mapping.codes.get(found)
    if code is None:
        if found is None:
            raise RecordError(f"field {path}: missing or null")
        known = ", ".join(mapping.type_names)
        raise RecordError(
            f"field {path}: expected one of {known} (settings streaming.event_types and {mapping.where}.types), "
            f"got {glimpse(found)}"
        )
    return int(code)


def _time(mapping: Mapping, document: AnyMapping[str, Any], record_ms: int, bounds: Bounds) -> int:
    path = mapping.paths.get("timestamp")
    found = None if path is None else dig(document, path)
    place = f"field {path}" if path else f"setting {mapping.where}.constants.timestamp"
    if found is None:
        found = mapping.stand_in("timestamp")
        if found is None:
            raise RecordError(f"{place}: missing or null")
        if found == RECORD_TIME:
            found, place = record_ms, "timestamp of the Kafka record"
    try:
        if isinstance(found, Huge):
            raise ValueError(f"expected epoch milliseconds or an ISO 8601 time, got {found[:60]}")
        time_ms = epoch_ms(found)
    except ValueError as error:
        raise RecordError(f"{place}: {error}") from None
    if not bounds.hold(time_ms):
        raise RecordError(f"{place}: {bounds.objection(time_ms)}")
    return time_ms


def _value(mapping: Mapping, document: AnyMapping[str, Any]) -> float:
    path = mapping.paths.get("value")
    found = None if path is None else dig(document, path)
    if found is None:
        return float(mapping.stand_in("value") or 0.0)
    number = isinstance(found, int | float | Decimal | Huge) and not isinstance(found, bool)
    if not number:
        raise RecordError(f"field {path}: expected a number, got {glimpse(found)}")
    value = float(found)
    try:
        check_value(value)
    except ValueError as error:
        raise RecordError(f"field {path}: {error}") from None
    return value


def _category(mapping: Mapping, document: AnyMapping[str, Any]) -> int:
    path = mapping.paths.get("category")
    found = None if path is None else _text(path, dig(document, path))
    if found is None:
        found = mapping.stand_in("category")
    else:
        try:
            check_text(found)
        except ValueError as error:
            raise RecordError(f"field {path}: {error}") from None
    return mapping.categories.index(found) if found in mapping.categories else NO_CATEGORY
