"""Records as documents, one by one: slow and readable, for a sample. The stream itself is decoded in columns."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from streaming.config import Source, StreamingSettings
from streaming.formats.mapping import FORGET_TYPE, Bounds, compile_mapping, iso
from streaming.formats.record import RecordError, dig, read_row
from streaming.rows import FORGET


@dataclass(frozen=True)
class MappedEvent:
    """An event by its own names, as text."""

    user: str
    item: str
    type: str
    time: str  # ISO 8601, UTC
    value: str
    category: str


def documents_of(values: Sequence[bytes | None], settings: StreamingSettings, source: Source) -> list[Any]:
    """Parse records; None where one cannot be parsed.

    Args:
        values: N record values.
        source: its format, and for Avro where the schema is.

    Raises:
        BrokerError: a schema registry cannot be asked.
        ValueError: the source cannot work.
    """
    parse: Callable[[bytes], Any] = json.loads
    if source.format == "avro":
        from streaming.formats.avro import AvroReader

        parse = AvroReader(compile_mapping(settings, source), source.avro, settings.max_record_bytes).document
    documents: list[Any] = []
    for value in values:
        try:
            documents.append(parse(value or b""))
        except (RecordError, ValueError, RecursionError):
            documents.append(None)
    return documents


class Reader:
    """Reads documents by a mapping, without hashing the names away.

    Raises:
        ValueError: the mapping cannot work.
    """

    def __init__(self, settings: StreamingSettings, source: Source) -> None:
        self._mapping = compile_mapping(settings, source)
        self._names = settings.event_types
        self._bounds = Bounds(float("-inf"), float("inf"))  # the decoder has judged the time

    def read(self, document: Any, record_ms: int) -> MappedEvent:
        """Map a document.

        Raises:
            RecordError: it is no event.
        """
        row = read_row(self._mapping, document, record_ms, self._bounds)
        path = self._mapping.paths.get("category")
        category = dig(document, path) if path else None
        if category is None:
            category = self._mapping.stand_in("category")
        return MappedEvent(
            user=row.user,
            item=row.item or "",
            type=FORGET_TYPE if row.code == FORGET else self._names[row.code],
            time=iso(row.time_ms).replace("+00:00", "Z"),
            value=f"{row.value:g}" if row.value else "",
            category="" if category is None else str(category),
        )
