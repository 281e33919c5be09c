"""Many records at a time, as columns: those that are plainly events, and which ones need a closer look.

A reader (`formats.jsonlines`, `streaming.formats.avro`) delivers the fields of a batch in the schema `RAW`; here they
are held against the mapping and the bounds. A record passes only if `formats.record` would make the very
same row of it; the check may therefore be coarse, but only to one side.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from streaming.formats.mapping import LABELS, MAX_VALUE, RECORD_TIME, Bounds, Mapping, epoch_ms
from streaming.formats.record import Row
from streaming.hashing import UInt64, stable_hash
from streaming.rows import FORGET, NO_CATEGORY, Int64

Mask = npt.NDArray[np.bool_]

# What readers deliver. A null is a field that is missing or null; `record` is the position in the batch.
RAW = pa.schema(
    [
        ("record", pa.int64()),
        *((name, pa.string()) for name in sorted(LABELS)),
        ("timestamp", pa.int64()),
        ("value", pa.float64()),
    ]
)
NOT_A_TIME = np.iinfo(np.int64).min  # there is something, but it needs a closer look
_YEAR_1_MS = -62_135_596_800_000  # Arrow reads the year 0, Python has none


@dataclass(frozen=True)
class Events:
    """Validated events as columns, all of length N, in the order of their records."""

    record: Int64  # position of the record in the batch it came from
    user: UInt64
    item: UInt64  # 0: an erasure
    event_id: UInt64  # 0: the record has none
    time_ms: Int64
    type: npt.NDArray[np.uint8]  # code into settings.event_types; FORGET: an erasure
    value_micro: Int64  # the value times 1e6, rounded; 0: none
    category: npt.NDArray[np.uint8]  # index into settings.state.categories; NO_CATEGORY: none or another

    def __len__(self) -> int:
        return len(self.record)


def check(mapping: Mapping, raw: pa.Table, record_ms: Int64, bounds: Bounds) -> tuple[dict[str, Any], Int64]:
    """Find the records that are plainly right.

    Args:
        raw: N records in the schema `RAW`.
        record_ms: the Kafka records' own timestamps, of the whole batch.

    Returns:
        Columns of those records, for `to_events`; and the positions of the others, which need a closer look.
    """
    columns = {name: raw[name].combine_chunks() for name in raw.column_names}
    record = columns["record"].to_numpy()
    code, code_good = _codes(mapping, columns["type"])
    erasure = code == FORGET
    time_ms, time_good = _times(mapping, columns["timestamp"], record_ms[record], bounds)
    value, value_good = _values(mapping, columns["value"])
    users, user_good = _labels(mapping, "user_id", columns["user_id"])
    items, item_good = _labels(mapping, "item_id", columns["item_id"])
    ids, id_good = _labels(mapping, "event_id", columns["event_id"])
    good = code_good & time_good & user_good & id_good & (erasure | (value_good & item_good))
    table = {
        "record": record,
        "user": users,
        "item": items,
        "event_id": ids,
        "time_ms": time_ms,
        "type": code,
        "value": value,
        "category": _categories(mapping, columns["category"]),
    }
    if good.all():
        return table, record[:0]
    keep = pa.array(good)
    kept = {
        name: column.filter(keep) if isinstance(column, pa.Array) else column[good]
        for name, column in table.items()
    }
    return kept, record[~good]


def to_events(table: dict[str, Any], singles: list[tuple[int, Row]]) -> Events:
    """Make events of checked columns.

    Args:
        table: what `check` returned.
        singles: records of the same batch that were judged one by one, with their positions.
    """
    if singles:
        table = _insert(table, singles)
    erasure = table["type"] == FORGET
    item, value, category = _hash_or_0(table["item"]), table["value"], table["category"]
    if erasure.any():  # it is of all that the user has, whatever else the record says
        item[erasure] = 0
        value, category = np.where(erasure, 0.0, value), np.where(erasure, NO_CATEGORY, category)
    return Events(
        record=table["record"],
        user=stable_hash(table["user"]),
        item=item,
        event_id=_hash_or_0(table["event_id"]),
        time_ms=table["time_ms"],
        type=table["type"],
        value_micro=np.rint(value * 1e6).astype(np.int64),
        category=category.astype(np.uint8),
    )


def times_from_numbers(column: pa.Array) -> pa.Array:
    """Epoch ms of a column of numbers (int64 with nulls); those beyond what a float64 counts: NOT_A_TIME."""
    numbers = column if column.type == pa.float64() else column.cast(pa.float64(), safe=False)
    values = pc.fill_null(numbers, 0.0).to_numpy(zero_copy_only=False)
    fine = np.abs(values) < 2**53  # False for NaN as well
    whole = np.where(fine, values, 0.0).astype(np.int64)
    mask = None if column.null_count == 0 else pc.is_null(column).to_numpy(zero_copy_only=False)
    return pa.array(np.where(fine, whole, NOT_A_TIME), pa.int64(), mask=mask)


def times_from_text(column: pa.Array) -> pa.Array:
    """Epoch ms of a column of ISO 8601 texts (int64 with nulls); those that are none: NOT_A_TIME."""
    for zone in ("UTC", None):  # Arrow wants all with a zone or all without one
        try:
            return times_from_moments(column.cast(pa.timestamp("us", zone)))
        except pa.ArrowInvalid:
            continue
    times = [None if text is None else _time_or_not(text) for text in column.to_pylist()]
    return pa.array(times, pa.int64())


def times_from_moments(column: pa.Array) -> pa.Array:
    """Epoch ms of a column of timestamps in µs (int64 with nulls)."""
    micros = pc.fill_null(column.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    times = micros // 1000
    mask = None if column.null_count == 0 else pc.is_null(column).to_numpy(zero_copy_only=False)
    return pa.array(np.where(times < _YEAR_1_MS, NOT_A_TIME, times), pa.int64(), mask=mask)


def _time_or_not(text: str) -> int:
    try:
        return epoch_ms(text)
    except ValueError:
        return int(NOT_A_TIME)


def _codes(mapping: Mapping, column: pa.Array) -> tuple[npt.NDArray[np.uint8], Mask]:
    names, codes = list(mapping.codes), np.array([*mapping.codes.values(), 0], np.uint8)
    place = pc.fill_null(pc.index_in(column, pa.array(names, pa.string())), len(names)).to_numpy()
    good = place < len(names)
    code = codes[place]
    stand_in = mapping.stand_in("type")
    if stand_in is not None and column.null_count:
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        code[missing] = stand_in
        good = good | missing
    return code, good


def _times(mapping: Mapping, column: pa.Array, record_ms: Int64, bounds: Bounds) -> tuple[Int64, Mask]:
    stand_in = mapping.stand_in("timestamp")
    times = pc.fill_null(column, NOT_A_TIME).to_numpy(zero_copy_only=False)
    if stand_in is not None and column.null_count:
        missing = pc.is_null(column).to_numpy(zero_copy_only=False)
        times = np.where(missing, record_ms if stand_in == RECORD_TIME else stand_in, times)
    return times, (times >= bounds.earliest_ms) & (times <= bounds.latest_ms) & (times != NOT_A_TIME)


def _values(mapping: Mapping, column: pa.Array) -> tuple[npt.NDArray[np.float64], Mask]:
    values = pc.fill_null(column, mapping.stand_in("value") or 0.0).to_numpy(zero_copy_only=False)
    return values, np.abs(values) <= MAX_VALUE


def _labels(mapping: Mapping, field: str, column: pa.Array) -> tuple[pa.Array, Mask]:
    stand_in = mapping.stand_in(field)
    if stand_in is not None:
        column = pc.fill_null(column, stand_in)
    size = pc.fill_null(pc.binary_length(column), 1 if field == "event_id" else 0)  # only that may be missing
    sizes = size.to_numpy(zero_copy_only=False)
    good = (sizes > 0) & (sizes <= mapping.max_id_length)  # bytes: at least as many as characters
    data = column.buffers()[2]
    if data is not None and b"\0" in data.to_pybytes():
        good &= ~pc.fill_null(pc.match_substring(column, "\0"), False).to_numpy(zero_copy_only=False)
    return column, good


def _categories(mapping: Mapping, column: pa.Array) -> npt.NDArray[np.uint8]:
    stand_in = mapping.stand_in("category")
    if stand_in is not None:
        column = pc.fill_null(column, stand_in)
    place = pc.fill_null(pc.index_in(column, pa.array(mapping.categories, pa.string())), NO_CATEGORY)
    category: npt.NDArray[np.uint8] = place.to_numpy(zero_copy_only=False).astype(np.uint8)
    return category


def _insert(table: dict[str, Any], singles: list[tuple[int, Row]]) -> dict[str, Any]:
    """Put the records that were judged one by one between the others, in the order of the batch."""
    rows = [row for _, row in singles]
    more = {
        "record": [record for record, _ in singles],
        "user": [row.user for row in rows],
        "item": [row.item for row in rows],
        "event_id": [row.event_id for row in rows],
        "time_ms": [row.time_ms for row in rows],
        "type": [row.code for row in rows],
        "value": [row.value for row in rows],
        "category": [row.category for row in rows],
    }
    merged: dict[str, Any] = {}
    order = np.argsort(np.concatenate([table["record"], np.array(more["record"], np.int64)]), kind="stable")
    for name, column in table.items():
        if isinstance(column, pa.Array):
            merged[name] = pa.concat_arrays([column, pa.array(more[name], pa.string())]).take(pa.array(order))
        else:
            merged[name] = np.concatenate([column, np.array(more[name], column.dtype)])[order]
    return merged


def _hash_or_0(column: pa.Array) -> UInt64:
    if column.null_count == 0:
        return stable_hash(column)
    hashes = stable_hash(pc.fill_null(column, ""))
    hashes[pc.is_null(column).to_numpy(zero_copy_only=False)] = 0
    return hashes
