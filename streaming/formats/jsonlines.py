"""JSON records to columns: a block of lines in one call of Arrow's reader.

The schema is explicit, built from the paths of the mapping, so that everything else in a record is skipped
without being kept. Arrow's reader fails as a whole on one bad record, but nearly always says in which row;
then the rows before it are read again, that one is left to `formats.record`, and reading goes on behind it.
Where it does not say, the lines are halved. What a block may cost is bounded: once four times its lines have been
given to the reader, the rest of them is judged one by one.

Producers differ in whether ids and times are numbers or strings. The schema follows the newest record that
did not fit it, so a stream pays for its own form once.

A line begins with `{` and ends with `}`. That is enough to keep lines apart: a line that were only the
beginning of an object would have to end in a value's `}` and be followed by `,` or a closing bracket, and the next
one begins with `{`. So if reading succeeds, each line is a whole number of objects, and if there are as many
rows as lines, each is one.
"""

import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from streaming.formats.columns import RAW, times_from_numbers, times_from_text
from streaming.formats.mapping import LABELS, Mapping
from streaming.formats.record import MAX_DEPTH, Huge, RecordError, dig, is_deep, parse_json
from streaming.rows import Int64

BLOCK = 2048  # lines; smaller blocks are read again sooner, larger ones pay Arrow's call less often
_BLOCK_BYTES = 64 * 1024 * 1024  # Arrow counts a block's bytes in 31 bits
_FEW = 8  # up to here Python's own parser is faster than a call of Arrow's
_CALL = 256  # what a call of Arrow's reader costs beside its lines, in lines
_ROW = re.compile(r"in row (\d+)$")
_TOKEN = re.compile(r"couldn't parse:(\S+)$")
_TWO = re.compile(rb"}[ \t\r\n]*{")  # between two objects there is nothing else


class JsonReader:
    """Reads JSON records; remembers the form in which the stream gives its ids and times."""

    def __init__(self, mapping: Mapping, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._paths = mapping.paths
        self._roles: dict[str, set[str]] = {}
        for field, path in mapping.paths.items():
            self._roles.setdefault(path, set()).add(field)
        self._kinds = {path: _first_kind(roles) for path, roles in self._roles.items()}

    def document(self, value: bytes) -> dict[str, Any]:
        """Parse one record.

        Raises:
            RecordError: it is not one JSON object of a bearable size and depth in UTF-8.
        """
        return parse_json(value, self._max_bytes)

    def read(self, values: Sequence[bytes | None]) -> tuple[pa.Table, list[int]]:
        """Read what can be read in columns.

        Args:
            values: N record values; None is a record without one.

        Returns:
            Records in the schema `RAW`, in order; and the positions of the others.
        """
        plain, num_bytes = self._plain(values)
        if not self._paths:  # Arrow does not count rows of no columns
            return RAW.empty_table(), list(range(len(values)))
        chosen = values if len(plain) == len(values) else [values[i] for i in plain.tolist()]
        blocks: list[_Block] = []
        step = BLOCK if num_bytes.sum() < _BLOCK_BYTES else max(1, _BLOCK_BYTES // int(num_bytes.max()))
        for start in range(0, len(chosen), step):
            blocks.append(_Block(chosen[start : start + step], plain[start : start + step]))
            self._read(blocks[-1], 0, len(blocks[-1].lines))
        tables = [table for block in blocks for table in block.tables]
        rest = [record for block in blocks for record in block.rest]
        if len(plain) < len(values):
            rest += np.setdiff1d(np.arange(len(values)), plain).tolist()
        return (pa.concat_tables(tables) if tables else RAW.empty_table()), rest

    def _plain(self, values: Sequence[bytes | None]) -> tuple[Int64, Int64]:
        """Positions of the values that Arrow may see, and their sizes in bytes."""
        column = pa.array(values, pa.large_binary())
        size = pc.fill_null(pc.binary_length(column), 0).to_numpy()
        braces = pc.fill_null(pc.and_(pc.starts_with(column, b"{"), pc.ends_with(column, b"}")), False)
        plain = braces.to_numpy(zero_copy_only=False) & (size <= self._max_bytes)
        for position in np.flatnonzero(plain & (size > 2 * MAX_DEPTH)).tolist():
            plain[position] = not is_deep(values[position] or b"")
        positions = np.flatnonzero(plain)
        return positions, size[positions]

    def _read(self, block: "_Block", start: int, stop: int) -> None:
        """Read lines `start` to `stop` of a block into its tables, or leave them to its rest."""
        if start >= stop:
            return
        if stop - start <= _FEW or block.spent > 4 * BLOCK:
            block.leave(start, stop)
            self._learn(block.lines[stop - 1])
            return
        lines = block.lines[start:stop]
        data = b"\n".join(lines) + b"\n"
        unfit = _unfit(lines, data)
        if unfit:
            self._between(block, start, stop, unfit)
            return
        try:
            table = self._parse(data)
        except pa.ArrowInvalid as error:
            self._around(block, start, stop, _row_of(str(error), lines))
            return
        if table.num_rows == len(lines):
            block.tables.append(self._fields(table, block.records[start:stop]))
        else:
            block.spent += len(lines)
            self._between(block, start, stop, [i for i, line in enumerate(lines) if _TWO.search(line)])

    def _between(self, block: "_Block", start: int, stop: int, unfit: list[int]) -> None:
        """Read what lies between lines that were found unfit without a parser."""
        behind = start
        for line in (start + row for row in unfit):
            self._read(block, behind, line)
            block.leave(line, line + 1)
            behind = line + 1
        self._read(block, behind, stop)

    def _around(self, block: "_Block", start: int, stop: int, row: int | None) -> None:
        """Go on after the reader failed at a row that it named, or did not."""
        block.spent += _CALL + (stop - start if row is None else row)
        if row is None:
            middle = (start + stop) // 2
            self._read(block, start, middle)
            self._read(block, middle, stop)
        else:
            self._read(block, start, start + row)
            block.leave(start + row, start + row + 1)
            self._learn(block.lines[start + row])
            self._read(block, start + row + 1, stop)

    def _parse(self, data: bytes) -> pa.Table:
        read_options = pj.ReadOptions(use_threads=False, block_size=len(data) + 1)
        options = pj.ParseOptions(explicit_schema=self._schema(), unexpected_field_behavior="ignore")
        return pj.read_json(io.BytesIO(data), read_options=read_options, parse_options=options)

    def _fields(self, table: pa.Table, records: Int64) -> pa.Table:
        """The columns of `RAW` out of those of the document."""
        nothing = pa.nulls(len(records))
        columns: dict[str, pa.Array] = {"record": pa.array(records)}
        for field in RAW.names[1:]:
            path = self._paths.get(field)
            found = nothing if path is None else _column(table, path)
            columns[field] = _as_field(field, found)
        return pa.table([columns[name] for name in RAW.names], schema=RAW)

    def _schema(self) -> pa.Schema:
        """The nested Arrow schema in which the paths of the mapping stand."""
        tree: dict[str, Any] = {}
        for path, kind in self._kinds.items():
            *parents, leaf = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[leaf] = kind
        return pa.schema(_struct(tree))

    def _learn(self, line: bytes) -> None:
        """Take the form of a record that did not fit for that of those to come."""
        try:
            document = self.document(line)
            for path, roles in self._roles.items():
                kind = _kind_of(dig(document, path), roles)
                if kind is not None:
                    self._kinds[path] = kind
        except RecordError:
            return  # it has no form to learn from; whoever judges it will say why


class _Block:
    """Lines that are read together, and what became of them."""

    def __init__(self, lines: Sequence[Any], records: Int64) -> None:
        self.lines, self.records = lines, records
        self.tables: list[pa.Table] = []
        self.rest: list[int] = []
        self.spent = 0  # lines given to the reader in vain

    def leave(self, start: int, stop: int) -> None:
        """Leave lines to be judged one by one."""
        self.rest += self.records[start:stop].tolist()


def _unfit(lines: Sequence[bytes], data: bytes) -> list[int]:
    """Lines that Arrow's reader would take for something else: it ends at a NUL and ignores encodings."""
    if b"\0" not in data and _is_utf8(data):
        return []
    return [i for i, line in enumerate(lines) if b"\0" in line or not _decodes(line)]


def _is_utf8(data: bytes) -> bool:
    """Whether much data is valid UTF-8 (Arrow's check is vectorised)."""
    offsets = pa.py_buffer(np.array([0, len(data)], np.int64))
    try:
        pa.Array.from_buffers(pa.large_string(), 1, [None, offsets, pa.py_buffer(data)]).validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _decodes(line: bytes) -> bool:
    """Whether a little data is valid UTF-8."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _row_of(message: str, lines: Sequence[bytes]) -> int | None:
    """The line that Arrow's message speaks of: it gives the row, or the text that is no number."""
    if found := _ROW.search(message):
        # text behind a line's object counts as the next row, of which the last line has none
        return min(int(found[1]), len(lines) - 1)
    if found := _TOKEN.search(message):
        token = found[1].encode()
        holders = [i for i, line in enumerate(lines) if token in line]
        return holders[0] if len(holders) == 1 else None
    return None


def _first_kind(roles: set[str]) -> pa.DataType:
    return pa.string() if roles & LABELS else pa.float64()


def _kind_of(value: Any, roles: set[str]) -> pa.DataType | None:
    """Type of the column in which a value fits; None: it says nothing about that."""
    if isinstance(value, bool | None):
        return None
    if roles == {"value"}:
        return pa.float64()
    if isinstance(value, Huge):
        return pa.uint64() if roles & LABELS and value.isdecimal() else None
    if isinstance(value, str):
        return pa.string()
    if isinstance(value, int) and roles & LABELS:
        return pa.int64()
    return pa.float64() if isinstance(value, int | float) and not roles & LABELS else None


def _struct(tree: dict[str, Any]) -> list[pa.Field]:
    return [
        pa.field(key, pa.struct(_struct(value)) if isinstance(value, dict) else value)
        for key, value in tree.items()
    ]


def _column(table: pa.Table, path: str) -> pa.Array:
    head, *rest = path.split(".")
    column = table[head].combine_chunks()
    for step in rest:
        column = pc.struct_field(column, step)
    return column


def _as_field(field: str, column: pa.Array) -> pa.Array:
    """Bring a column into the type that `RAW` has for its field."""
    if pa.types.is_null(column.type):
        return column.cast(RAW.field(field).type)
    if field in LABELS:
        return column.cast(pa.string())
    if field == "timestamp":
        text = column.type == pa.string()
        return times_from_text(column) if text else times_from_numbers(column)
    if column.type == pa.string():  # the value stands where an id does: no number, so a closer look
        return pc.if_else(pc.is_null(column), None, float("nan")).cast(pa.float64())
    return column.cast(pa.float64(), safe=False)
