"""Impressions and events of an experiment as columns, from topics or from files."""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json
import pyarrow.parquet as pq

from services.settings import Settings
from services.topic_reader import TopicReader, UnknownTopicError
from streaming.events import EventDecoder
from streaming.hashing import UInt64, stable_hash
from streaming.rows import Int64

_PORTION = 20_000  # records decoded together
_SCHEMA = pa.schema(
    [
        ("user_id", pa.string()),
        ("time", pa.int64()),
        ("experiment", pa.string()),
        ("arm", pa.string()),
        ("items", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float64())),
        ("propensities", pa.list_(pa.float64())),
    ]
)
_EVENT_COLUMNS = ("user_id", "item_id", "type", "timestamp")


class ReportError(Exception):
    """There is nothing to report on, or it cannot be read; the message says what was expected and what to do."""


@dataclass(frozen=True)
class Successes:
    """Events that count as a success, all of length N; `rejected` records of events did not validate."""

    user: UInt64
    item: UInt64
    time_ms: Int64
    rejected: int = 0


def read_impressions(settings: Settings, path: Path | None) -> pa.Table:
    """Impressions of users, anonymous sessions left out, in the columns that a report needs.

    Args:
        path: a Parquet or JSON-lines file; None: the topic of `serving.impressions`.

    Raises:
        ReportError: it cannot be read. BrokerError: the broker cannot be reached.
    """
    if path is None:
        table = _of_topic(settings)
    elif path.suffix == ".parquet":
        table = _parquet(path, tuple(_SCHEMA.names)).cast(_SCHEMA)
    else:
        table = _json(_bytes(path), str(path))
    known = pc.and_(pc.is_valid(table["user_id"]), pc.is_valid(table["items"]))
    return table.filter(pc.and_(known, pc.is_valid(table["time"])))


def read_successes(settings: Settings, path: Path | None, types: tuple[str, ...]) -> Successes:
    """Events of some types.

    Args:
        path: a Parquet file with the columns user_id, item_id, type, timestamp (epoch ms), or JSON lines as the first
            source has them; None: the events topics. types: of `streaming.event_types`.

    Raises:
        ReportError: a type is unknown, or a file cannot be read. BrokerError: the broker cannot be reached.
    """
    known = settings.streaming.event_types
    for name in types:
        if name not in known:
            raise ReportError(
                f"--success: no event type {name!r}; streaming.event_types has {', '.join(known)}"
            )
    if path is not None and path.suffix == ".parquet":
        table = _parquet(path, _EVENT_COLUMNS)
        table = table.filter(pc.is_in(table["type"], pa.array(types)))
        time_ms = table["timestamp"].cast(pa.int64()).to_numpy()
        return Successes(stable_hash(table["user_id"]), stable_hash(table["item_id"]), time_ms)
    codes = np.array([known.index(name) for name in types])
    parts = list(_decoded(settings, path, codes))
    if not parts:
        none = np.empty(0, np.uint64)
        return Successes(none, none, np.empty(0, np.int64))
    return Successes(
        np.concatenate([part.user for part in parts]),
        np.concatenate([part.item for part in parts]),
        np.concatenate([part.time_ms for part in parts]),
        sum(part.rejected for part in parts),
    )


def _decoded(settings: Settings, path: Path | None, codes: Int64) -> Iterator[Successes]:
    sources = settings.streaming.sources if path is None else settings.streaming.sources[:1]
    for source in sources:
        decoder = EventDecoder(settings.streaming, source)
        records = _lines(path) if path is not None else _records(settings, source.topic)
        for portion in _portions(records):
            values, keys, times = zip(*portion, strict=True)
            stamps = None if path is not None else np.array(times, np.int64)
            events, rejected = decoder.decode(values, keys, stamps)
            chosen = np.isin(events.type, codes)
            yield Successes(events.user[chosen], events.item[chosen], events.time_ms[chosen], len(rejected))


def _of_topic(settings: Settings) -> pa.Table:
    topic = settings.serving.impressions.topic
    try:
        records = _records(settings, topic)
        parts = [
            _json(b"\n".join(value for value, _, _ in portion if value), f"topic {topic!r}")
            for portion in _portions(records)
        ]
    except UnknownTopicError as error:
        raise ReportError(
            f"{error}; set serving.impressions.enabled = true, or give a file with --impressions"
        ) from error
    return pa.concat_tables(parts) if parts else _SCHEMA.empty_table()


def _records(settings: Settings, topic: str) -> Iterator[tuple[bytes | None, bytes | None, int]]:
    with TopicReader(settings.kafka, topic) as reader:
        for record in reader.read(reader.everything()):
            yield record.value, record.key, record.timestamp


def _lines(path: Path) -> Iterator[tuple[bytes, None, int]]:
    for line in _bytes(path).splitlines():
        if line.strip():
            yield line, None, 0


def _portions(records: Iterable[Any]) -> Iterator[list[Any]]:
    stream = iter(records)
    while portion := list(islice(stream, _PORTION)):
        yield portion


def _json(lines: bytes, where: str) -> pa.Table:
    if not lines.strip():
        return _SCHEMA.empty_table()
    parse = pyarrow.json.ParseOptions(explicit_schema=_SCHEMA, unexpected_field_behavior="ignore")
    read = pyarrow.json.ReadOptions(block_size=max(len(lines), 1 << 20))  # no line is cut
    try:
        return pyarrow.json.read_json(io.BytesIO(lines), read_options=read, parse_options=parse)
    except pa.ArrowInvalid as error:
        raise ReportError(f"{where} holds records that are no impressions: {error}") from error


def _parquet(path: Path, columns: tuple[str, ...]) -> pa.Table:
    try:
        return pq.read_table(path, columns=list(columns)).select(list(columns))
    except (OSError, KeyError, pa.ArrowInvalid) as error:
        raise ReportError(
            f"{path}: expected a Parquet file with columns {', '.join(columns)}: {error}"
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error}") from error
