"""Avro records to columns, with fastavro (https://fastavro.readthedocs.io).

Each Kafka record is a body of its own, so they are decoded one by one, in C; from there on they are columns again:
some 100,000 events per second and core. Logical types come as Python's: timestamps, UUIDs and decimals
are understood where a field may be one.

A hostile body can crash or stall a decoder through two features of a schema, so schemas that have them are refused:
one that contains itself (a record that is nothing but nesting overflows the C stack), and an array of items
that take no bytes (five bytes then ask for a billion of them).
"""

import io
import json
from collections.abc import Mapping as AnyMapping
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from types import ModuleType
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from streaming.config import AvroSettings
from streaming.formats.columns import RAW, times_from_moments, times_from_numbers, times_from_text
from streaming.formats.mapping import LABELS, Mapping
from streaming.formats.record import RecordError, check_size
from streaming.formats.schema_registry import SchemaRegistry

_NONE = type(None)


class AvroReader:
    """Reads Avro records by the schema of a file, or by those that they name.

    Raises:
        ValueError: the settings name no usable schema; or fastavro is not installed.
    """

    def __init__(self, mapping: Mapping, settings: AvroSettings, max_bytes: int) -> None:
        self._fastavro = _fastavro(mapping.where)
        self._max_bytes, self._paths = max_bytes, mapping.paths
        where = f"{mapping.where}.avro"
        if (settings.schema_file is None) == (settings.registry_url is None):
            raise ValueError(f"{where}: expected one of schema_file and registry_url, got both or neither")
        self._schema: Any = None
        self._registry: SchemaRegistry | None = None
        if settings.schema_file is None:
            self._registry = SchemaRegistry(where, settings, self._parse)
        else:
            try:
                self._schema = self._parse(json.loads(settings.schema_file.read_bytes()), [])
            except (OSError, ValueError) as error:
                raise ValueError(f"{where}.schema_file: {settings.schema_file}: {error}") from error

    def document(self, value: bytes) -> AnyMapping[str, Any]:
        """Decode one record.

        Raises:
            RecordError: it does not hold what its schema says.
            RegistryError: the registry cannot be asked for that.
        """
        check_size(value, self._max_bytes)
        schema, start = (self._schema, 0) if self._registry is None else self._registry.split(value)
        body = io.BytesIO(value)
        body.seek(start)
        try:
            document = self._fastavro.schemaless_reader(body, schema, None)
        except Exception as error:  # fastavro lets out whatever its parts raise: a dozen kinds
            detail = str(error).replace(repr(body), "the record")
            raise RecordError(f"not Avro of its schema: {type(error).__name__}: {detail}") from None
        if body.tell() != len(value):
            raise RecordError(f"not Avro of its schema: {len(value) - body.tell()} bytes follow its end")
        if not isinstance(document, dict):
            raise RecordError(f"expected an Avro record, got a {type(document).__name__}")
        return document

    def read(self, values: Sequence[bytes | None]) -> tuple[pa.Table, list[int]]:
        """Read what can be read in columns (schema `RAW`); and the positions of the others."""
        documents: list[AnyMapping[str, Any]] = []
        records: list[int] = []
        rest: list[int] = []
        for position, value in enumerate(values):
            try:
                if value is None:
                    raise RecordError("no value")
                documents.append(self.document(value))
                records.append(position)
            except RecordError:
                rest.append(position)  # whoever judges it says why
        columns: dict[str, pa.Array] = {"record": pa.array(records, pa.int64())}
        odd = np.zeros(len(records), bool)
        for field in RAW.names[1:]:
            path = self._paths.get(field)
            found = [None] * len(documents) if path is None else _dig_all(documents, path)
            columns[field], strange = _as_field(field, found)
            odd[strange] = True
        table = pa.table([columns[name] for name in RAW.names], schema=RAW)
        if not odd.any():
            return table, rest
        return table.filter(pa.array(~odd)), rest + np.asarray(records)[odd].tolist()

    def _parse(self, schema: Any, references: list[Any]) -> Any:
        """Make a schema usable, if it can be read safely."""
        named: dict[str, Any] = {}
        try:
            for reference in references:
                self._fastavro.parse_schema(reference, named_schemas=named)
            parsed = self._fastavro.parse_schema(schema, named_schemas=named)
        except (self._fastavro.schema.SchemaParseException, self._fastavro.schema.UnknownType) as error:
            raise ValueError(f"not an Avro schema: {error}") from None
        except (TypeError, KeyError, AttributeError) as error:  # JSON, but nothing like a schema
            raise ValueError(f"not an Avro schema: {type(error).__name__}: {error}") from None
        _refuse_hostile(parsed, named)
        return parsed


def _fastavro(where: str) -> ModuleType:
    try:
        import fastavro
    except ImportError:
        raise ValueError(
            f"{where}.format: 'avro' needs the package fastavro: pip install 'headrace[avro]'"
        ) from None
    module: ModuleType = fastavro
    return module


def _dig_all(documents: Sequence[Any], path: str) -> list[Any]:
    """Follow a dotted path into many documents; None where it leads nowhere."""
    found = list(documents)
    for step in path.split("."):
        found = [inner.get(step) if isinstance(inner, dict) else None for inner in found]
    return found


def _as_field(field: str, found: list[Any]) -> tuple[pa.Array, list[int]]:
    """Bring values into the type that `RAW` has for their field; positions of those that it cannot hold."""
    allowed = _READABLE["label" if field in LABELS else field]
    kinds = set(map(type, found)) - {_NONE}
    strange: list[int] = []
    if not kinds <= allowed:
        strange = [i for i, value in enumerate(found) if value is not None and type(value) not in allowed]
        found = [None if value is None or type(value) not in allowed else value for value in found]
        kinds &= allowed
    if field in LABELS:
        texts = found if kinds <= {str} else [None if value is None else str(value) for value in found]
        return pa.array(texts, pa.string()), strange
    if field == "value":
        return pa.array([None if value is None else float(value) for value in found], pa.float64()), strange
    if kinds <= {int, float}:
        numbers = [None if value is None else float(value) for value in found]
        return times_from_numbers(pa.array(numbers, pa.float64())), strange
    if kinds == {datetime}:
        return times_from_moments(pa.array(found, pa.timestamp("us", "UTC"))), strange
    if kinds == {str}:
        return times_from_text(pa.array(found, pa.string())), strange
    return pa.nulls(len(found), pa.int64()), list(range(len(found)))  # times of several kinds: one by one


_READABLE = {
    "label": {str, int, UUID},
    "timestamp": {int, float, datetime, str},
    "value": {int, float, Decimal},
}


def _refuse_hostile(schema: Any, named: AnyMapping[str, Any]) -> None:
    """Refuse a schema by which a small record can crash or stall the decoder.

    Raises:
        ValueError: it has one of the two features that the module's docstring names.
    """
    sizes: dict[str, int] = {}

    def least(part: Any, around: frozenset[str]) -> int:
        """Fewest bytes that a value of this schema takes; anything above 0 is as good as 1."""
        if isinstance(part, list):
            for choice in part:
                least(choice, around)
            return 1
        kind = part["type"] if isinstance(part, dict) else part
        if kind in {"record", "error"}:
            return record(part, around)
        if kind == "array" and not least(part["items"], around):
            raise ValueError(
                "it has an array of items that take no bytes, which can ask for any amount of memory"
            )
        if kind == "map":
            least(part["values"], around)
        if kind == "fixed":
            return int(part["size"])
        if isinstance(kind, str) and kind in named:
            if kind in around:
                raise ValueError(f"it contains itself ({kind}), which a hostile record can nest without end")
            return sizes[kind] if kind in sizes else least(named[kind], around)
        if not isinstance(kind, str):
            return least(kind, around)
        return 0 if kind == "null" else 1

    def record(part: AnyMapping[str, Any], around: frozenset[str]) -> int:
        inside = around | {part["name"]}
        sizes[part["name"]] = max((least(field["type"], inside) for field in part["fields"]), default=0)
        return sizes[part["name"]]

    least(schema, frozenset())
