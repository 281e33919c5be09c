"""From sample documents to a suggested mapping: a pure function, by the names of paths and by their values.

Every path gets a score for every field of the Event contract, and the best path above zero is taken, the fields with
the plainest signs first. It is a guess: `headrace inspect` decodes the sample with it and says what share it accepts.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from services.shapes import PathShape, is_plain, shapes_of, words
from services.vocabulary import (
    CATEGORIES,
    EVENTS,
    IDS,
    ITEMS,
    NO_TIMES,
    NOT_IDS,
    NOT_OF_ITEMS,
    TIMES,
    TYPES,
    USERS,
    VALUES,
    known_type,
)
from streaming.config import FieldName, FieldPaths, Source
from streaming.formats.mapping import RECORD_TIME

REQUIRED: tuple[FieldName, ...] = ("user_id", "item_id", "type", "timestamp")

_UNREAD = {
    "epoch s": "in epoch seconds",
    "epoch µs": "in epoch microseconds",
    "epoch ns": "in epoch nanoseconds",
    "text": "text that is not ISO 8601",
    "numeric text": "a number written as text",
}
_OPTIONAL: dict[FieldName, str] = {"event_id": "event_id", "value": "value"}  # and their default paths
_MANY_TYPES = 64
_LONG_TYPE = 100  # characters


@dataclass(frozen=True)
class Suggestion:
    """A mapping that sample documents suggest."""

    fields: dict[FieldName, str]  # field: path
    types: dict[str, str] = field(default_factory=dict)  # observed: known
    unmapped: dict[str, int] = field(default_factory=dict)  # observed, with no known meaning: records
    constants: dict[FieldName, str] = field(default_factory=dict)
    missing: tuple[FieldName, ...] = ()  # needed, and not found
    categories: tuple[str, ...] = ()  # observed values of the category field
    notes: tuple[str, ...] = ()  # what a person should know

    def source(self, topic: str, **rest: Any) -> Source:
        """The suggestion as a setting; what is missing is looked for where nothing is."""
        return Source(
            topic=topic,
            fields=FieldPaths(**{**{name: nowhere(name) for name in self.missing}, **self.fields}),
            types=self.types,
            constants=self.constants,
            **rest,
        )


def nowhere(name: FieldName) -> str:
    """A path at which no record has anything: the way to switch an optional field off in TOML."""
    return f"no_{name}"


def suggest(documents: Iterable[Any], known_types: Sequence[str]) -> Suggestion:
    """Suggest a mapping. Never raises, whatever the documents are.

    Args:
        documents: parsed records; what is no object is passed over.
        known_types: `streaming.event_types`.
    """
    shapes = shapes_of(documents)
    usable = [shape for shape in shapes if shape.mappable]
    records = max((shape.count for shape in shapes), default=0)
    scores: dict[FieldName, Callable[[PathShape], float]] = {
        "timestamp": _timestamp,
        "event_id": _event_id,
        "item_id": lambda shape: _identifier(shape, ITEMS),
        "user_id": lambda shape: _identifier(shape, USERS),
        "type": lambda shape: _type(shape, known_types),
        "value": _value,
        "category": _category,
    }
    found: dict[FieldName, PathShape] = {}
    for name, score in scores.items():
        taken = [shape.path for shape in found.values()]
        free = [shape for shape in usable if not any(_overlap(shape.path, path) for path in taken)]
        rated = [
            (score(shape) * _presence(shape, records, name), -position) for position, shape in enumerate(free)
        ]
        best = max(rated, default=(0.0, 0))
        if best[0] > 0:
            found[name] = free[-best[1]]
    return _finish(found, shapes, known_types, records)


def _finish(
    found: dict[FieldName, PathShape], shapes: list[PathShape], known_types: Sequence[str], records: int
) -> Suggestion:
    fields: dict[FieldName, str] = {name: shape.path for name, shape in found.items()}
    constants: dict[FieldName, str] = {}
    if records:
        if "type" not in found and known_types:
            constants["type"] = _constant_type(found.get("value"), known_types)
        if "timestamp" not in found or _unit(found["timestamp"]) in _UNREAD:
            constants["timestamp"] = RECORD_TIME
            fields.pop("timestamp", None)
    # The default paths hold where none is suggested; what stands there by chance must not do harm.
    met = [shape.path for shape in shapes]
    for name, default in _OPTIONAL.items():
        if name not in fields and any(_overlap(default, path) for path in met):
            fields[name] = nowhere(name)
    observed = found["type"].values if "type" in found else {}
    plain = [name for name in observed if is_plain(name) and len(name) <= _LONG_TYPE]
    meant = {name: known_type(name, known_types) for name in plain}
    return Suggestion(
        fields=fields,
        types={name: kind for name, kind in meant.items() if kind is not None and kind != name},
        unmapped={name: observed[name] for name, kind in meant.items() if kind is None},
        constants=constants,
        missing=tuple(name for name in REQUIRED if name not in fields and name not in constants),
        categories=tuple(filter(is_plain, found["category"].values)) if "category" in found else (),
        notes=tuple(_notes(found, shapes, records)),
    )


def _presence(shape: PathShape, records: int, name: FieldName) -> float:
    share = shape.count / max(records, 1)
    return 0.3 + 0.7 * share if name in ("value", "category", "event_id") else share**2


def _identifier(shape: PathShape, stems: Sequence[str]) -> float:
    """How well a path fits as the id of what `stems` name: by its last step and the one before it."""
    if not _mostly(shape, "text", "integer"):
        return 0.0
    *parents, leaf = [_split(step, stems) for step in shape.path.split(".")]
    parent = parents[-1] if parents else []
    own = [stems.index(word) for word in leaf if word in stems]
    above = [stems.index(word) for word in parent if word in stems]
    is_id = bool(IDS.intersection(leaf))
    if own and is_id:
        score = 10.0
    elif above and leaf and IDS.issuperset(leaf):
        score = 9.0
    elif own and len(leaf) == 1:
        score = 7.0
    elif own:
        score = 3.0
    else:
        return 0.0
    score -= 0.08 * min(own or above) + 0.2 * len(parents)
    score -= 6.0 * bool(NOT_IDS.intersection(leaf)) + 2.0 * bool(
        NOT_IDS.intersection(parent) - {"properties"}
    )
    return score * (0.3 if shape.distinct == 1 and shape.count >= 20 else 1.0)


def _event_id(shape: PathShape) -> float:
    if not shape.unique or not _mostly(shape, "text", "integer", at_least=1) or shape.times["ISO 8601"]:
        return 0.0
    *parents, leaf = [_split(step, EVENTS) for step in shape.path.split(".")]
    if set(EVENTS).intersection(leaf) and IDS.intersection(leaf):
        return 10.0 - 0.2 * len(parents)
    if parents and set(EVENTS).intersection(parents[-1]) and IDS.issuperset(leaf):
        return 9.0
    if shape.path.lower() in ("id", "uuid", "guid", "_id"):
        return 8.0
    return 0.0


def _timestamp(shape: PathShape) -> float:
    kind = _unit(shape)
    leaf = words(shape.path.rpartition(".")[2])
    signs = [TIMES.index(word) for word in leaf if word in TIMES]
    compound = any(shape.path.lower().endswith(word) for word in ("timestamp", "tstamp", "datetime", "_ts"))
    named = 4.0 - 0.2 * min(signs, default=0) if signs or compound else 0.0
    if kind == "ISO 8601":
        score = 6.0 + named
    elif kind == "epoch ms":
        score = 6.0 + named if named else 0.0
    elif kind in _UNREAD:
        score = 1.0 + named if named else 0.0
    else:
        return 0.0
    if NO_TIMES.intersection(words(shape.path)):
        score -= 3.0
    return score - 0.3 * shape.path.count(".")


def _type(shape: PathShape, known_types: Sequence[str]) -> float:
    if not _mostly(shape, "text") or shape.distinct > _MANY_TYPES:
        return 0.0
    if shape.count >= 20 and shape.distinct > shape.count / 2:
        return 0.0
    mapped = sum(count for name, count in shape.values.items() if known_type(name, known_types)) / shape.count
    *parents, leaf = [words(step) for step in shape.path.split(".")]
    of_event = bool(parents) and not {"event", "action"}.isdisjoint(parents[-1])
    named = 0.0
    if (TYPES.issuperset(leaf) and leaf != ["name"]) or (leaf == ["name"] and of_event):
        named = 4.0
    elif {"event", "action", "interaction"}.intersection(leaf):
        named = 2.0
    if not named and mapped < 0.5:
        return 0.0
    strange = parents and not TYPES.intersection(parents[-1])
    return named + 8.0 * mapped - 1.5 * bool(strange) - 0.5 * (shape.distinct == 1)


def _value(shape: PathShape) -> float:
    leaf = words(shape.path.rpartition(".")[2])
    signs = [VALUES.index(word) for word in leaf if word in VALUES]
    if not signs or not _mostly(shape, "integer", "number", at_least=1) or IDS.intersection(leaf):
        return 0.0
    return 5.0 - 0.2 * min(signs) - 0.1 * shape.path.count(".") - 0.2 * (len(leaf) - 1)


def _category(shape: PathShape) -> float:
    leaf = words(shape.path.rpartition(".")[2])
    signs = [CATEGORIES.index(word) for word in leaf if word in CATEGORIES]
    if (
        not signs
        or not _mostly(shape, "text", at_least=1)
        or shape.distinct > 128
        or NOT_OF_ITEMS.intersection(words(shape.path))
    ):
        return 0.0
    return (
        5.0 - 0.2 * min(signs) - 0.1 * shape.path.count(".") - 2.0 * bool(IDS.intersection(leaf) - {"code"})
    )


def _constant_type(value: PathShape | None, known_types: Sequence[str]) -> str:
    rated = value is not None and {"rating", "stars", "score"}.intersection(words(value.path))
    wish = "rating" if rated else "view"
    return wish if wish in known_types else known_types[0]


def _notes(found: dict[FieldName, PathShape], shapes: list[PathShape], records: int) -> Iterator[str]:
    if not records:
        return
    time = found.get("timestamp")
    if time is None:
        yield f"No time was found: {RECORD_TIME} takes that of the Kafka record, when it was produced."
    elif (unit := _unit(time)) in _UNREAD:
        yield (
            f"{time.path} is {_UNREAD[unit]} (such as {time.example}), and no setting converts it. {RECORD_TIME} "
            "takes the time of the Kafka record instead: right for a live stream, wrong for old events sent today. "
            "For those the producer must send epoch milliseconds or ISO 8601."
        )
    for name, stems in (("user_id", USERS), ("item_id", ITEMS)):
        listed = [
            shape.path for shape in shapes if "[]" in shape.path and _identifier(_plainly(shape), stems) > 5
        ]
        if name not in found and listed:
            yield (
                f"{name}: {listed[0]} stands in a list. A record is one event with one item: have the producer send "
                "a record for each."
            )
    if "event_id" not in found:
        yield "No event id was found: a record that is sent twice counts twice."
    if "value" not in found:
        for shape in shapes:
            if set(VALUES).intersection(words(shape.path.rpartition(".")[2])) and shape.numeric_text:
                yield f"{shape.path} is a number written as text (such as {shape.example}); a value must be a number."
                break
    for name in REQUIRED:
        if name in found and (absent := records - found[name].count):
            yield f"{found[name].path} is missing or null in {absent:,} of {records:,} records."


def _unit(shape: PathShape) -> str:
    return shape.times.most_common(1)[0][0] if shape.times else ""


def _overlap(one: str, other: str) -> bool:
    """Whether two paths are the same, or one goes on inside of the other: no mapping can name both."""
    return (one + ".").startswith(other + ".") or (other + ".").startswith(one + ".")


def _plainly(shape: PathShape) -> PathShape:
    return PathShape(shape.path.replace("[]", ""), shape.count, shape.kinds, shape.values)


def _mostly(shape: PathShape, *kinds: str, at_least: float = 0.95) -> bool:
    return sum(shape.kinds[kind] for kind in kinds) >= at_least * shape.count > 0


def _split(step: str, stems: Sequence[str]) -> list[str]:
    """The words of a step, with `visitorid` as `visitor`, `id` where it is one of the stems."""
    said: list[str] = []
    for word in words(step):
        stem = word[:-2] if word.endswith("id") else ""
        said += [stem, "id"] if stem in stems else [word]
    return said
