"""The Event contract: from the bytes of a micro-batch to validated columns, and reasons for what fails.

A batch is decoded in one call to Arrow's JSON reader (about a million events per second and core), with an
explicit schema built from the field paths of the settings. The reader fails as a whole on one bad record;
then the batch is halved until the culprits stand with few others, and only those are looked at in Python,
which finds the reason a person can act on. Producers differ in whether ids and times are numbers or strings: the
variants are tried in order of last success, so a stream pays for its own form only once.
"""

import io
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from streaming.config import FieldPaths, StreamingSettings
from streaming.hashing import UInt64, stable_hash

Int64 = npt.NDArray[np.int64]

_LATEST_MS = 2**53  # larger integers do not survive JavaScript
_FEW = 4  # up to here Python's own JSON parser is faster than a call of Arrow's reader


@dataclass(frozen=True)
class Events:
    """Validated events as columns, all of length N, in the order of their records."""

    record: Int64  # position of the record in the batch it came from
    user: UInt64
    item: UInt64
    event_id: UInt64  # 0: the record has none
    time_ms: Int64
    type: npt.NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.record)


@dataclass(frozen=True)
class Rejected:
    """A record that does not validate: where it stood in the batch, and why."""

    record: int
    reason: str


class EventDecoder:
    """Decodes and validates micro-batches; remembers which variant of the schema the stream uses."""

    def __init__(self, settings: StreamingSettings) -> None:
        self._settings = settings
        self._fields = settings.fields
        self._codes = pa.array(settings.event_types, pa.string())
        self._variants = [
            _variant(settings.fields, ids, times)
            for ids, times in itertools.product((pa.string(), pa.int64()), (pa.int64(), pa.string()))
        ]

    def decode(self, values: Sequence[bytes | None]) -> tuple[Events, list[Rejected]]:
        """Decode record values.

        Args:
            values: N record values as they came from the broker; None is a record without a value.

        Returns:
            The valid events, and a reason for each record that is not one. Every record is in exactly one.
        """
        rejected: list[Rejected] = []
        lines: list[bytes] = []
        records: list[int] = []
        for position, value in enumerate(values):
            if value is None or not value.lstrip().startswith(b"{"):
                rejected.append(Rejected(position, "expected a JSON object, got " + _glimpse(value)))
            else:
                lines.append(value.replace(b"\n", b" ") if b"\n" in value else value)
                records.append(position)
        parts: list[pa.Table] = []
        self._parse(lines, np.asarray(records, np.int64), parts, rejected)
        if not parts:
            return _no_events(), sorted(rejected, key=lambda r: r.record)
        table = pa.concat_tables(parts).combine_chunks()
        events = self._validate(table, rejected)
        return events, sorted(rejected, key=lambda r: r.record)

    def _parse(
        self, lines: list[bytes], records: Int64, parts: list[pa.Table], rejected: list[Rejected]
    ) -> None:
        if len(lines) <= _FEW:
            self._parse_one_by_one(lines, records, parts, rejected)
            return
        table = self._read(lines)
        if table is not None:
            parts.append(table.append_column("record", pa.array(records)))
        else:
            half = len(lines) // 2
            self._parse(lines[:half], records[:half], parts, rejected)
            self._parse(lines[half:], records[half:], parts, rejected)

    def _parse_one_by_one(
        self, lines: list[bytes], records: Int64, parts: list[pa.Table], rejected: list[Rejected]
    ) -> None:
        rows = []
        for line, record in zip(lines, records.tolist(), strict=True):
            row = self._read_one(line)
            if isinstance(row, str):
                rejected.append(Rejected(record, row))
            else:
                rows.append(row | {"record": record})
        if rows:
            parts.append(pa.Table.from_pylist(rows, schema=_FLAT))

    def _read(self, lines: list[bytes]) -> pa.Table | None:
        data = b"\n".join(lines)
        read_options = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        for position, variant in enumerate(self._variants):
            options = pj.ParseOptions(explicit_schema=variant, unexpected_field_behavior="ignore")
            try:
                table = pj.read_json(io.BytesIO(data), read_options=read_options, parse_options=options)
                if table.num_rows != len(lines):
                    return None  # some record holds two objects
                flat = _flatten(table, self._fields)
                flat.validate(full=True)  # the reader itself lets invalid UTF-8 through
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
                continue
            if position:
                self._variants.insert(0, self._variants.pop(position))
            return flat
        return None

    def _read_one(self, line: bytes) -> dict[str, Any] | str:
        try:
            document = json.loads(line)
        except UnicodeDecodeError as error:
            return f"not UTF-8: {error.reason} at byte {error.start}"
        except (json.JSONDecodeError, RecursionError) as error:
            return f"not JSON: {error}"
        row: dict[str, Any] = {}
        for name, path in _paths(self._fields):
            found = _dig(document, path)
            try:
                row[name] = _coerce(name, found)
            except ValueError as error:
                return f"field {path}: {error}"
        return row

    def _validate(self, table: pa.Table, rejected: list[Rejected]) -> Events:
        records = table["record"].to_numpy()
        now_ms = time.time() * 1000
        latest = now_ms + self._settings.max_future_s * 1000
        codes = pc.index_in(table["type"], self._codes)
        paths = dict(_paths(self._fields))
        bad = np.zeros(len(records), bool)

        def refuse(mask: pa.ChunkedArray, reason: str, column: str | None = None) -> None:
            hit = pc.fill_null(mask, True).to_numpy(zero_copy_only=False).astype(bool) & ~bad
            for row in np.flatnonzero(hit):
                seen = f", got {_glimpse(table[column][int(row)].as_py())}" if column else ""
                rejected.append(Rejected(int(records[row]), reason + seen))
            bad[hit] = True

        for name in ("user_id", "item_id"):
            limit = self._settings.max_id_length
            size = pc.utf8_length(table[name])
            refuse(pc.is_null(table[name]), f"field {paths[name]}: missing or null")
            refuse(pc.equal(size, 0), f"field {paths[name]}: empty")
            refuse(pc.greater(size, limit), f"field {paths[name]}: longer than {limit} characters", name)
        refuse(pc.is_null(table["type"]), f"field {paths['type']}: missing or null")
        known = ", ".join(self._settings.event_types)
        refuse(
            pc.is_null(codes), f"field {paths['type']}: expected one of {known} (setting event_types)", "type"
        )
        refuse(pc.is_null(table["timestamp"]), f"field {paths['timestamp']}: missing, null or not a time")
        bound = datetime.fromtimestamp(latest / 1000, UTC).isoformat(timespec="seconds")
        refuse(
            pc.greater(table["timestamp"], int(latest)),
            f"field {paths['timestamp']}: later than {bound} (setting max_future_s)",
            "timestamp",
        )
        good = table.filter(pa.array(~bad))
        ids = good["event_id"].combine_chunks()
        event_id = stable_hash(pc.fill_null(ids, ""))
        event_id[pc.is_null(ids).to_numpy(zero_copy_only=False)] = 0
        return Events(
            record=records[~bad],
            user=stable_hash(good["user_id"]),
            item=stable_hash(good["item_id"]),
            event_id=event_id,
            time_ms=good["timestamp"].to_numpy(),
            type=codes.filter(pa.array(~bad)).to_numpy().astype(np.uint8),
        )


_FLAT = pa.schema(
    [
        ("event_id", pa.string()),
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("type", pa.string()),
        ("timestamp", pa.int64()),
        ("record", pa.int64()),
    ]
)


def _paths(fields: FieldPaths) -> list[tuple[str, str]]:
    names = ("event_id", "user_id", "item_id", "type", "timestamp")
    return [(name, path) for name in names if (path := getattr(fields, name)) is not None]


def _variant(fields: FieldPaths, ids: pa.DataType, times: pa.DataType) -> pa.Schema:
    """Build the nested Arrow schema in which the paths of the settings stand."""
    tree: dict[str, Any] = {}
    for name, path in _paths(fields):
        *parents, leaf = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = times if name == "timestamp" else ids if name in {"user_id", "item_id"} else pa.string()
    return pa.schema(_struct(tree))


def _struct(tree: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(key, pa.struct(_struct(value)) if isinstance(value, dict) else value)
        for key, value in tree.items()
    ]


def _flatten(table: pa.Table, fields: FieldPaths) -> pa.Table:
    columns: dict[str, pa.ChunkedArray] = {
        "event_id": pa.chunked_array([pa.nulls(table.num_rows, pa.string())])
    }
    for name, path in _paths(fields):
        head, *rest = path.split(".")
        column = table[head]
        for step in rest:
            column = pc.struct_field(column, step)
        if name == "timestamp":
            column = _to_epoch_ms(column)
        elif column.type != pa.string():
            column = column.cast(pa.string())
        columns[name] = column
    return pa.table([columns[name] for name in _FLAT.names[:-1]], names=_FLAT.names[:-1])


def _to_epoch_ms(column: pa.ChunkedArray) -> pa.ChunkedArray:
    if column.type == pa.int64():
        return column
    zoned = pc.ends_with(column, "Z").combine_chunks()
    if not pc.all(zoned).as_py():
        raise pa.ArrowInvalid("not all times end in Z; they are read one by one")
    return pc.cast(pc.utf8_rtrim(column, "Z"), pa.timestamp("ms")).cast(pa.int64())


def _dig(document: Any, path: str) -> Any:
    for step in path.split("."):
        if not isinstance(document, dict):
            return None
        document = document.get(step)
    return document


def _coerce(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "timestamp":
        return epoch_ms(value)
    if name in {"user_id", "item_id"} and isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise ValueError(f"expected a string, got {_glimpse(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a surrogate pair, which is not valid text") from None
    return value


def epoch_ms(value: Any) -> int:
    """Read a time: epoch milliseconds, or an ISO 8601 text (UTC where it names no zone).

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        if abs(value) < _LATEST_MS:
            return int(value)
    elif isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)
        except (ValueError, OverflowError):
            pass
    raise ValueError(f"expected epoch milliseconds or an ISO 8601 time, got {_glimpse(value)}")


def _glimpse(value: object) -> str:
    if value is None:
        return "nothing"
    text = repr(value[:60]) if isinstance(value, str | bytes) else repr(value)[:60]
    return text if len(text) < 60 else text + "…"


def _no_events() -> Events:
    return Events(
        record=np.empty(0, np.int64),
        user=np.empty(0, np.uint64),
        item=np.empty(0, np.uint64),
        event_id=np.empty(0, np.uint64),
        time_ms=np.empty(0, np.int64),
        type=np.empty(0, np.uint8),
    )
