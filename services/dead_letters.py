"""Dead letters: what stands in the dead-letter topic, grouped by what was wrong.

A letter is a record that did not validate, with its key, bytes and headers untouched, plus `headrace.*` headers
that say why, from where and when. The topic is streamed: what is held is one counter per kind of reason, and the
newest letters.

Which letters were sent again stands in the same topic, as small records beside the letters (header
`headrace.replayed`, no `headrace.reason`). So it is known on every machine, is lost with the letters and not
before, and cannot be mistaken for a later topic of the same name, as a file could. The price is a second pass: the
notes stand behind the letters they are about.
"""

import heapq
import json
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Self

from services.plain_text import printable
from services.topic_reader import TopicReader
from streaming.errors import StreamingError

REPLAYED = "headrace.replayed"
REPLAYED_FROM = "headrace.replayed-from"

MAX_GROUPS = 500  # kinds of reasons counted one by one; further ones are counted together
OTHER_REASONS = "(further reasons, counted together)"

_GLIMPSE = 1000  # bytes of a letter that are kept for the list

_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:\d\d)?")
_QUOTED = re.compile(r"(?<!\w)b?('(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\")")
_NUMBER = re.compile(r"(?<![\w.[-])-?\d[\d_,]*(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
_SEEN = re.compile(r"\bgot .*", re.DOTALL)


class DeadLetterError(StreamingError):
    """A dead letter cannot be found or sent again; the message says why."""


@dataclass(frozen=True, order=True)
class Place:
    """Where a letter stands in the dead-letter topic; written `partition:offset`."""

    partition: int
    offset: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `partition:offset`.

        Raises:
            DeadLetterError: it is not of that form.
        """
        found = re.fullmatch(r"(\d{1,9}):(\d{1,18})", text.strip(), re.ASCII)
        if found is None:
            raise DeadLetterError(
                "expected a place in the dead-letter topic as partition:offset, such as 0:17, "
                f"got {printable(text, 40)!r}"
            )
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.partition}:{self.offset}"


@dataclass(frozen=True)
class DeadLetter:
    """A record that did not validate. The source is unknown (None) where another program wrote the letter."""

    place: Place
    time_ms: int  # when Headrace met it
    reason: str
    topic: str | None
    partition: int | None
    offset: int | None
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]  # all of them

    @classmethod
    def from_record(cls, record: Any) -> Self:
        """Read a record of the topic. Of a header that repeats the last one counts: Headrace appends its own."""
        said = dict(record.headers)
        topic = said.get("headrace.topic")
        time_ms = _integer(said.get("headrace.time"))
        return cls(
            place=Place(record.partition, record.offset),
            time_ms=record.timestamp if time_ms is None else time_ms,
            reason=(
                said.get("headrace.reason") or b"no header headrace.reason: not written by Headrace"
            ).decode(errors="replace"),
            topic=topic.decode(errors="replace") if topic else None,
            partition=_integer(said.get("headrace.partition")),
            offset=_integer(said.get("headrace.offset")),
            key=record.key,
            value=record.value,
            headers=tuple(record.headers),
        )

    def abridged(self) -> Self:
        """The letter with no more of its bytes than a line shows: a record may have 10 MB."""
        value = None if self.value is None else self.value[:_GLIMPSE]
        return replace(self, value=value, key=None, headers=())

    @property
    def own_headers(self) -> list[tuple[str, bytes | None]]:
        """The headers the producer gave it, without those of Headrace."""
        return [(name, value) for name, value in self.headers if not name.startswith("headrace.")]


@dataclass(frozen=True)
class Selection:
    """Which letters are meant; all of them where nothing is said."""

    reason: str | None = None
    topic: str | None = None
    since_ms: int | None = None

    def holds(self, letter: DeadLetter) -> bool:
        """Whether the letter is one of them; a reason is looked for anywhere in the text, in any case."""
        return (
            (self.reason is None or self.reason.casefold() in letter.reason.casefold())
            and (self.topic is None or self.topic == letter.topic)
            and (self.since_ms is None or letter.time_ms >= self.since_ms)
        )


class Replayed:
    """The places that were sent again: a set of places, kept as ranges, so that a million in a row cost one."""

    def __init__(self, places: Iterable[Place] = ()) -> None:
        self._ranges: dict[int, list[tuple[int, int]]] = {}  # partition: (first, last), both included
        self._in_order = True  # ranges are ascending and do not touch
        for place in places:
            self.add(place.partition, place.offset, place.offset)

    def add(self, partition: int, first: int, last: int) -> None:
        """Add the places `partition:first` to `partition:last`."""
        self._ranges.setdefault(partition, []).append((first, last))
        self._in_order = False

    def __contains__(self, place: Place) -> bool:
        ranges = self._merged().get(place.partition, [])
        before = bisect_right(ranges, (place.offset, 2**63)) - 1
        return before >= 0 and place.offset <= ranges[before][1]

    def _merged(self) -> dict[int, list[tuple[int, int]]]:
        if not self._in_order:
            self._ranges = {partition: _merge(ranges) for partition, ranges in self._ranges.items()}
            self._in_order = True
        return self._ranges

    def to_json(self) -> bytes:
        """As it is written to the topic: `{"0": [[17, 20], [25, 25]]}`."""
        return json.dumps({str(partition): ranges for partition, ranges in self._merged().items()}).encode()

    def add_json(self, data: bytes | None) -> None:
        """Add what `to_json` wrote; what is not of its form is passed over (anybody can write to a topic)."""
        try:
            document = json.loads(data or b"")
            ranges = [
                (int(part), int(first), int(last)) for part in document for first, last in document[part]
            ]
        except (ValueError, TypeError, RecursionError):
            return
        for partition, first, last in ranges:
            self.add(partition, first, last)


def replayed_in(reader: TopicReader) -> Replayed:
    """Read which letters of the topic were sent again: one pass over all of it."""
    replayed = Replayed()
    for record in reader.read(reader.everything()):
        if _is_note(record):
            replayed.add_json(record.value)
    return replayed


def letters_in(reader: TopicReader, selection: Selection | None = None) -> Iterator[DeadLetter]:
    """Stream the letters of the topic: one pass over all of it, in offset order per partition."""
    for record in reader.read(reader.everything()):
        if not _is_note(record):
            letter = DeadLetter.from_record(record)
            if selection is None or selection.holds(letter):
                yield letter


def letters_at(reader: TopicReader, places: Iterable[Place]) -> Iterator[DeadLetter]:
    """Read the letters at these places.

    Raises:
        DeadLetterError: there is none at one of them.
    """
    for place in sorted(set(places)):
        partition, offset = place.partition, place.offset
        first, end = reader.beginnings.get(partition, 0), reader.ends.get(partition, 0)
        record = next(reader.read({partition: (offset, offset + 1)}), None) if first <= offset < end else None
        if record is None or _is_note(record):
            held = "; ".join(
                f"{number}:{reader.beginnings[number]} to {number}:{reader.ends[number] - 1}"
                for number in reader.partitions
                if reader.ends[number] > reader.beginnings[number]
            )
            raise DeadLetterError(
                f"topic {reader.topic!r} has no dead letter at {place}; it holds {held or 'no records'}"
                + (" (this one only notes what was replayed)" if record is not None else "")
            )
        yield DeadLetter.from_record(record)


def kind_of(reason: str) -> str:
    """A reason without what differs from record to record, so that letters of one cause form one group.

    What was seen (`got …`), quoted values, times and numbers give way; the names of fields and settings stay.
    """
    kind = _SEEN.sub("got …", reason)
    kind = _TIME.sub("…", kind)
    kind = _QUOTED.sub("'…'", kind)
    return _NUMBER.sub("N", kind)


@dataclass
class Group:
    """Letters of one kind of reason from one topic."""

    kind: str
    topic: str | None
    example: DeadLetter
    first_ms: int
    last_ms: int
    count: int = 0
    replayed: int = 0


@dataclass
class Summary:
    """What `headrace dlq list` shows: groups, the most frequent first, and the newest letters, newest first."""

    groups: list[Group] = field(default_factory=list)
    newest: list[DeadLetter] = field(default_factory=list)
    replayed: set[Place] = field(default_factory=set)  # of the newest

    @property
    def count(self) -> int:
        """Letters in all."""
        return sum(group.count for group in self.groups)


def summarise(letters: Iterable[DeadLetter], replayed: Replayed, limit: int) -> Summary:
    """Group a stream of letters; what is held does not grow with their number.

    Args:
        replayed: which of them were sent again.
        limit: newest letters kept.
    """
    groups: dict[tuple[str, str | None], Group] = {}
    newest: list[tuple[int, Place, DeadLetter]] = []  # a heap, the oldest on top
    for letter in letters:
        name = kind_of(letter.reason), letter.topic
        if name not in groups and len(groups) >= MAX_GROUPS:
            name = OTHER_REASONS, None
        group = groups.setdefault(name, Group(*name, letter.abridged(), letter.time_ms, letter.time_ms))
        group.count += 1
        group.replayed += letter.place in replayed
        group.first_ms = min(group.first_ms, letter.time_ms)
        group.last_ms = max(group.last_ms, letter.time_ms)
        if limit > 0:
            push = heapq.heappush if len(newest) < limit else heapq.heappushpop
            push(newest, (letter.time_ms, letter.place, letter.abridged()))
    kept = [letter for _, _, letter in sorted(newest, reverse=True, key=lambda entry: entry[:2])]
    return Summary(
        sorted(groups.values(), key=lambda group: (-group.count, group.kind)),
        kept,
        {letter.place for letter in kept if letter.place in replayed},
    )


def _merge(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(last, merged[-1][1])
        else:
            merged.append((first, last))
    return merged


def _is_note(record: Any) -> bool:
    names = {name for name, _ in record.headers}
    return REPLAYED in names and "headrace.reason" not in names


def _integer(text: bytes | None) -> int | None:
    try:
        return int(text or b"")
    except ValueError:
        return None
