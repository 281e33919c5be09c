"""What a source's settings make of a record: where each field stands, and what stands in for it.

A `Mapping` is a `Source` checked against the rest of the settings and brought into the form in which both
readers use it: the one over columns (`formats.columns`) and the one over a single record
(`formats.record`). Whatever cannot work is refused here, at start, with the path of the setting.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from streaming.config import Source, StreamingSettings
from streaming.rows import FORGET

FORGET_TYPE = "$forget"
RECORD_TIME = "$record"  # constants.timestamp or defaults.timestamp: the Kafka record's own time

FIELDS = ("user_id", "type", "item_id", "timestamp", "event_id", "value", "category")  # in order of checking
LABELS = frozenset({"user_id", "item_id", "event_id", "type", "category"})  # strings, or integers as strings
MAX_VALUE = 1e9  # in millionths, thousands of such values of one user still add up within 64 bits
_LATEST_MS = 2**53  # larger integers do not survive JavaScript


@dataclass(frozen=True)
class Mapping:
    """How records of one source become events; made by `compile_mapping`."""

    where: str  # path of the source in the settings
    paths: dict[str, str]  # field -> dotted path; a field that no record is asked for has none
    constants: dict[str, Any]  # field -> str, int (ms), float, type code, or RECORD_TIME
    defaults: dict[str, Any]  # likewise
    codes: dict[str, int]  # a record's type -> type code
    type_names: tuple[str, ...]  # what a record's type may be, for messages
    categories: tuple[str, ...]
    max_id_length: int

    def stand_in(self, field: str) -> Any:
        """Value of a field that the record lacks; None: there is none."""
        return self.constants.get(field, self.defaults.get(field))


@dataclass(frozen=True)
class Bounds:
    """Event times that are believed, epoch ms, both inclusive."""

    earliest_ms: float
    latest_ms: float

    @classmethod
    def around(cls, now_ms: float, settings: StreamingSettings) -> "Bounds":
        """Bounds of the settings as of now."""
        return cls(now_ms - settings.max_past_s * 1000, now_ms + settings.max_future_s * 1000)

    def hold(self, time_ms: float) -> bool:
        """Whether a time lies within them."""
        return self.earliest_ms <= time_ms <= self.latest_ms

    def objection(self, time_ms: float) -> str:
        """Why a time outside of them is refused."""
        late = time_ms > self.latest_ms
        bound, setting = (self.latest_ms, "max_future_s") if late else (self.earliest_ms, "max_past_s")
        said = f"{'later' if late else 'earlier'} than {iso(bound)} (setting streaming.{setting})"
        if self.hold(time_ms * 1000):
            return f"looks like seconds; expected milliseconds ({said}), got {time_ms:.0f}"
        return f"{said}, got {time_ms:.0f}"


def compile_mapping(settings: StreamingSettings, source: Source) -> Mapping:
    """Check a source against the settings.

    Raises:
        ValueError: something in it cannot work; the message names the setting, what was expected and seen.
    """
    where = "streaming.sources[]"
    if source in settings.sources:
        where = f"streaming.sources[{settings.sources.index(source)}]"
    known = (*settings.event_types, FORGET_TYPE)
    if FORGET_TYPE in settings.event_types:
        raise ValueError(f"streaming.event_types: {FORGET_TYPE!r} is the name of an erasure, not of an event")
    for name, target in source.types.items():
        _expect(target in known, f"{where}.types: {name!r}", _one_of(known), target)
    if source.types and "type" in source.constants:
        raise ValueError(f"{where}.types has no effect beside {where}.constants.type; leave one out")
    for field in source.constants.keys() & source.defaults.keys():
        raise ValueError(f"{where}.defaults.{field} has no effect beside {where}.constants.{field}")
    paths = {
        field: path
        for field in FIELDS
        if field not in source.constants and (path := getattr(source.fields, field)) is not None
    }
    _refuse_overlaps(where, paths)
    codes = {name: _code(settings, name) for name in known}
    codes |= {name: codes[target] for name, target in source.types.items()}
    return Mapping(
        where=where,
        paths=paths,
        constants=_literals(settings, f"{where}.constants", source.constants),
        defaults=_literals(settings, f"{where}.defaults", source.defaults),
        codes=codes,
        type_names=tuple(dict.fromkeys([*source.types, *settings.event_types])),
        categories=settings.state.categories,
        max_id_length=settings.max_id_length,
    )


def epoch_ms(value: Any) -> int:
    """Read a time: epoch milliseconds, or an ISO 8601 text (UTC where it names no zone), or a datetime.

    A time names the millisecond that it lies in.

    Raises:
        ValueError: it is none of these.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) < _LATEST_MS:
            return int(value)
    elif isinstance(value, datetime):
        return _floor_ms(value)
    elif isinstance(value, str) and value[4:5] == "-":  # Python would take some bare numbers for dates
        with suppress(ValueError, OverflowError):
            return _floor_ms(datetime.fromisoformat(value))
    raise ValueError(f"expected epoch milliseconds or an ISO 8601 time, got {glimpse(value)}")


def check_label(text: str, limit: int) -> None:
    """Hold an id against the rules for ids.

    Raises:
        ValueError: it is empty, too long, or not text that can be passed on.
    """
    if not text:
        raise ValueError("empty")
    if len(text) > limit:
        raise ValueError(
            f"longer than {limit} characters (setting streaming.max_id_length), got {len(text)}: "
            f"{glimpse(text)}"
        )
    if "\0" in text:
        raise ValueError(f"holds a NUL character, which does not belong in an id, got {glimpse(text)}")
    check_text(text)


def check_text(text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell and UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"holds half a surrogate pair, which is not valid text, got {glimpse(text)}"
        ) from None


def check_value(value: float) -> None:
    """Hold an amount against its bounds.

    Raises:
        ValueError: it is beyond them, or not a number.
    """
    if not abs(value) <= MAX_VALUE:
        raise ValueError(f"expected a finite number within ±{MAX_VALUE:g}, got {value!r}")


def glimpse(value: object) -> str:
    """The beginning of a value, for messages."""
    if value is None:
        return "nothing"
    text = repr(value[:60]) if isinstance(value, str | bytes) else repr(value)[:60]
    return text if len(text) < 60 else text + "…"


def iso(time_ms: float) -> str:
    """A time in epoch ms as ISO 8601; those that a calendar cannot name, as a number."""
    try:
        return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
    except (OverflowError, ValueError, OSError):
        return f"epoch ms {time_ms:.0f}"


def _floor_ms(moment: datetime) -> int:
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    past = zoned - datetime(1970, 1, 1, tzinfo=UTC)
    return (past.days * 86400 + past.seconds) * 1000 + past.microseconds // 1000


def _literals(settings: StreamingSettings, where: str, given: Any) -> dict[str, Any]:
    """Values that stand in for fields, read once; the settings hold them as strings."""
    known = (*settings.event_types, FORGET_TYPE)
    literals: dict[str, Any] = {}
    for field, text in given.items():
        place = f"{where}.{field}"
        if field == "event_id":
            raise ValueError(f"{place}: every event that gets it would be a duplicate of the first")
        if field == "type":
            _expect(text in known, place, _one_of(known), text)
            literals[field] = _code(settings, text)
        elif field == "timestamp":
            literals[field] = text if text == RECORD_TIME else _time_literal(place, text)
        elif field == "value":
            literals[field] = _value_literal(place, text)
        else:
            try:
                check_label(text, settings.max_id_length)
            except ValueError as error:
                raise ValueError(f"{place}: {error}") from None
            literals[field] = text
    return literals


def _time_literal(place: str, text: str) -> int:
    try:
        return epoch_ms(int(text) if text.lstrip("-").isdecimal() else text)
    except ValueError:
        raise ValueError(
            f"{place}: expected epoch milliseconds, an ISO 8601 time or {RECORD_TIME!r} (the Kafka record's), "
            f"got {glimpse(text)}"
        ) from None


def _value_literal(place: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    _expect(abs(value) <= MAX_VALUE, place, f"a number within ±{MAX_VALUE:g}", text)
    return value


def _refuse_overlaps(where: str, paths: dict[str, str]) -> None:
    for field, path in paths.items():
        for other, inside in paths.items():
            if inside.startswith(path + "."):
                raise ValueError(
                    f"{where}.fields: {field} stands at {path!r} and {other} inside of it at {inside!r}; "
                    "a record cannot hold a value and an object in one place"
                )


def _code(settings: StreamingSettings, name: str) -> int:
    return FORGET if name == FORGET_TYPE else settings.event_types.index(name)


def _one_of(names: Iterable[str]) -> str:
    return "one of " + ", ".join(names)


def _expect(met: bool, place: str, expected: str, got: str) -> None:
    if not met:
        raise ValueError(f"{place}: expected {expected}, got {glimpse(got)}")
