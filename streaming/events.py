"""The Event contract: from the bytes of a micro-batch to validated columns, and reasons for what fails.

A batch is read into columns, block by block (`formats.jsonlines`, `formats.avro`), and what is plainly right
becomes events there (`formats.columns`): some 900,000 per second and core. What is left is judged record by
record (`formats.record`), which finds the reason a person can act on. Both follow the source's
`formats.mapping`, and a record fares the same in whatever company it comes.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from streaming.config import Source, StreamingSettings
from streaming.formats.columns import Events, check, to_events
from streaming.formats.jsonlines import JsonReader
from streaming.formats.mapping import FORGET_TYPE, RECORD_TIME, Bounds, compile_mapping, epoch_ms
from streaming.formats.record import RecordError, Row, read_row, tombstone_row
from streaming.rows import FORGET, NO_CATEGORY, Int64

__all__ = [
    "FORGET",
    "FORGET_TYPE",
    "NO_CATEGORY",
    "RECORD_TIME",
    "EventDecoder",
    "Events",
    "Rejected",
    "epoch_ms",
]


@dataclass(frozen=True)
class Rejected:
    """A record that does not validate: where it stood in the batch, and why."""

    record: int
    reason: str


class RecordReader(Protocol):
    """Reads the records of one format."""

    def read(self, values: Sequence[bytes | None]) -> tuple[pa.Table, list[int]]:
        """Read what can be read in columns (schema `streaming.formats.columns.RAW`); positions of the others."""
        ...

    def document(self, value: bytes) -> Mapping[str, Any]:
        """Parse one record, or raise `RecordError`."""
        ...


class EventDecoder:
    """Decodes and validates micro-batches of one source.

    Args:
        settings: streaming settings.
        source: one of their sources; the first by default.
        clock_ms: the time that bounds of event times refer to, epoch ms.

    Raises:
        ValueError: the source's mapping cannot work; the message names the setting.
    """

    def __init__(
        self,
        settings: StreamingSettings,
        source: Source | None = None,
        clock_ms: Callable[[], float] | None = None,
    ) -> None:
        source = source or settings.sources[0]
        self._settings = settings
        self._clock_ms = clock_ms or (lambda: time.time() * 1000)
        self._mapping = compile_mapping(settings, source)
        self._reader: RecordReader = JsonReader(self._mapping, settings.max_record_bytes)
        if source.format == "avro":
            from streaming.formats.avro import AvroReader  # optional, and seldom needed

            self._reader = AvroReader(self._mapping, source.avro, settings.max_record_bytes)

    def decode(
        self,
        values: Sequence[bytes | None],
        keys: Sequence[bytes | None] | None = None,
        timestamps_ms: Int64 | None = None,
    ) -> tuple[Events, list[Rejected]]:
        """Decode records.

        Args:
            values: N record values as they came from the broker; None is a record without a value, which
                with a key asks to forget the user whom that names (a tombstone).
            keys: their keys; by default none has one.
            timestamps_ms: (N,) the records' own timestamps, epoch ms; by default now.

        Returns:
            The valid events, and a reason for each record that is not one. Every record is in exactly one.

        Raises:
            BrokerError: a schema registry cannot be asked; nothing is wrong with the records.
        """
        now_ms = self._clock_ms()
        bounds = Bounds.around(now_ms, self._settings)
        record_ms = np.full(len(values), int(now_ms)) if timestamps_ms is None else np.asarray(timestamps_ms)
        raw, closer = self._reader.read(values)
        table, doubtful = check(self._mapping, raw, record_ms, bounds)
        rows: list[tuple[int, Row]] = []
        rejected: list[Rejected] = []
        for record in sorted([*closer, *doubtful.tolist()]):
            key = None if keys is None else keys[record]
            try:
                rows.append((record, self._judge(values[record], key, int(record_ms[record]), bounds)))
            except RecordError as error:
                rejected.append(Rejected(record, str(error)))
        return to_events(table, rows), rejected

    def user_id(self, value: bytes | None, key: bytes | None, timestamp_ms: int) -> str:
        """The user that a valid record is of: events hold only the hash.

        Raises:
            ValueError: the record does not validate.
        """
        return self._judge(value, key, timestamp_ms, Bounds.around(self._clock_ms(), self._settings)).user

    def _judge(self, value: bytes | None, key: bytes | None, record_ms: int, bounds: Bounds) -> Row:
        if value is None:
            return tombstone_row(self._mapping, key, record_ms, bounds)
        return read_row(self._mapping, self._reader.document(value), record_ms, bounds)
