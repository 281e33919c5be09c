"""The item catalogue: items as they stand in the compacted topic, and the vectors of their text.

One actor writes it, everybody else on the machine reads it by mmap. The items of a batch and the offset up to
which the topic was read change in one transaction. Vectors are keyed by a fingerprint of text and encoder,
so an item whose text did not change is never encoded again. Where a guard is set, a changed text moves the vector
only so far (`streaming.anchors`).
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lmdb
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streaming import environment, metrics
from streaming.anchors import Anchors, Guard
from streaming.hashing import UInt64, hash_one

if TYPE_CHECKING:
    from lmdb import _Database as Database

Float32 = npt.NDArray[np.float32]

_STAMP = 16  # bytes in front of a stored vector
_OF_TEXT = 12  # the first of them name encoder and text; the others change with the guard
_NO_ATTRIBUTES: dict[str, Any] = {}  # one for all items without any


class Item(BaseModel):
    """The Item contract. Unknown fields are ignored: a catalogue usually knows more than is needed here."""

    model_config = ConfigDict(frozen=True, extra="ignore", coerce_numbers_to_str=True)

    item_id: str = Field(min_length=1, max_length=512)
    title: str = ""
    description: str = ""
    categories: tuple[str, ...] = ()
    attributes: dict[str, Any] = Field(default_factory=dict)
    available: bool = True

    def text(self) -> str:
        """What the text encoder reads: title, categories, description."""
        parts = (self.title, ", ".join(self.categories), self.description)
        return ". ".join(part for part in parts if part)


@dataclass(frozen=True)
class CatalogSnapshot:
    """The catalogue of one moment as columns of length N, ordered by item hash."""

    version: int
    ids: list[str]
    hashes: UInt64
    titles: list[str]
    categories: list[list[str]]
    texts: list[str]
    available: npt.NDArray[np.bool_]
    vectors: Float32  # (N, D), zeros where not encoded yet
    encoded: npt.NDArray[np.bool_]
    stamps: npt.NDArray[np.uint8]  # (N, 16) encoder, text and guard of each vector, zeros where not encoded
    attributes: list[dict[str, Any]]  # as published

    def __len__(self) -> int:
        return len(self.ids)

    def of_encoder(self, fingerprint: str) -> "CatalogSnapshot":
        """The same items, encoded only where the vector is that encoder's of the item's present text.

        Under whatever guard: such vectors can be compared, so they serve until new ones are there.
        """
        wanted = b"".join(_stamp(fingerprint, text)[:_OF_TEXT] for text in self.texts)
        same = (self.stamps[:, :_OF_TEXT] == np.frombuffer(wanted, np.uint8).reshape(-1, _OF_TEXT)).all(1)
        encoded = self.encoded & same
        vectors = np.where(encoded[:, None], self.vectors, np.float32(0))
        return replace(self, vectors=vectors, encoded=encoded)


def parse_item(key: bytes | None, value: bytes) -> Item | str:
    """Validate a record of the items topic; returns the reason where it is not an item."""
    try:
        document = json.loads(value)
    except (ValueError, RecursionError) as error:
        return f"not JSON: {error}"
    if isinstance(document, dict) and "item_id" not in document and key:
        document["item_id"] = key.decode(errors="replace")
    try:
        return Item.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        return f"field {'.'.join(map(str, first['loc'])) or '(record)'}: {first['msg']}"


class CatalogStore:
    """The writer's side.

    Args:
        catalog_dir: folder of the LMDB environment.
        map_size_gib: address space reserved (sparse).
    """

    def __init__(self, catalog_dir: Path, map_size_gib: float = 16.0) -> None:
        self._env = environment.open_writer(catalog_dir, map_size_gib)
        self._items = self._env.open_db(b"items")
        self._vectors = self._env.open_db(b"vectors")
        self._meta = self._env.open_db(b"meta")
        self._anchors = Anchors(self._env)

    def applied(self) -> dict[int, int]:
        """Last applied offset of each partition of the items topic."""
        with self._env.begin(db=self._meta) as txn:
            return {int(k): int(v) for k, v in json.loads(txn.get(b"applied") or b"{}").items()}

    def apply(
        self, changes: Sequence[tuple[str, Item | None]], partition: int, upto_offset: int, rejected: int = 0
    ) -> None:
        """Write items (None deletes, the vector and its anchor as well) and the offset in one transaction."""
        known = asked = 0  # texts
        with self._env.begin(write=True) as txn:
            for item_id, item in changes:
                key = hash_one(item_id).to_bytes(8, "big")
                if item is None:
                    txn.delete(key, db=self._items)
                    txn.delete(key, db=self._vectors)  # else the same text added again would not be encoded
                    self._anchors.drop(txn, [key])
                else:
                    asked, known = asked + 1, known + self._has_vector(txn, key, item)
                    txn.put(key, item.model_dump_json().encode(), db=self._items)
            applied = json.loads(txn.get(b"applied", db=self._meta) or b"{}")
            applied[str(partition)] = upto_offset
            txn.put(b"applied", json.dumps(applied).encode(), db=self._meta)
            if rejected:
                _count(txn, self._meta, b"rejected", rejected)
            if changes:
                _count(txn, self._meta, b"version", 1)
        metrics.CACHE_REQUESTS.labels("text_vectors", "hit").inc(known)
        metrics.CACHE_REQUESTS.labels("text_vectors", "miss").inc(asked - known)

    def _has_vector(self, txn: Any, key: bytes, item: Item) -> bool:
        """Whether the item's text is one that has a vector already."""
        before = txn.get(key, db=self._items)
        if before is None or txn.get(key, db=self._vectors) is None:
            return False
        return Item.model_validate_json(before).text() == item.text()

    def missing(self, fingerprint: str, limit: int, guard: Guard | None = None) -> list[tuple[bytes, str]]:
        """Items whose text has no vector of this encoder and guard yet, at most `limit`: (key, text)."""
        out: list[tuple[bytes, str]] = []
        with self._env.begin() as txn:
            for key, value in txn.cursor(db=self._items):
                text = Item.model_validate_json(value).text()
                stored = txn.get(key, db=self._vectors)
                if stored is None or stored[:_STAMP] != _stamp(fingerprint, text, guard):
                    out.append((key, text))
                    if len(out) == limit:
                        break
        return out

    def put_vectors(
        self,
        fingerprint: str,
        items: Sequence[tuple[bytes, str]],
        vectors: Float32,
        guard: Guard | None = None,
    ) -> None:
        """Store the text vectors (N, D) of items returned by `missing`, held by the guard where there is one.

        Without one their anchors go: what changes meanwhile is trusted when a guard is set again.
        """
        keys, vectors = [key for key, _ in items], vectors.astype(np.float32)
        with self._env.begin(write=True) as txn:
            if guard is None:
                self._anchors.drop(txn, keys)
            else:
                vectors = self._anchors.hold(txn, fingerprint, keys, vectors, guard)
            for (key, text), vector in zip(items, vectors, strict=True):
                txn.put(key, _stamp(fingerprint, text, guard) + vector.tobytes(), db=self._vectors)
            _count(txn, self._meta, b"version", 1)

    def held_back(self) -> int:
        """Items whose vector the guard holds at its cap."""
        return self._anchors.held_back()

    def close(self) -> None:
        """Flush and close."""
        self._env.sync(True)
        environment.close(self._env)


class CatalogReader:
    """The readers' side; safe to share between threads. A catalogue that does not exist yet is empty."""

    def __init__(self, catalog_dir: Path) -> None:
        self._dir = catalog_dir
        self._opened: tuple[lmdb.Environment, Database, Database, Database] | None = None

    def version(self) -> int:
        """Number of changes so far; 0 for none."""
        return self._number(b"version")

    def rejected(self) -> int:
        """Records of the items topic that were no items."""
        return self._number(b"rejected")

    def counts(self) -> tuple[int, int]:
        """(items, vectors) stored; a vector may be that of an older text."""
        opened = self._open()
        if opened is None:
            return 0, 0
        env, items, vectors, _ = opened
        with env.begin() as txn:
            return int(txn.stat(items)["entries"]), int(txn.stat(vectors)["entries"])

    def snapshot(self) -> CatalogSnapshot:
        """Everything, as of one transaction."""
        opened = self._open()
        if opened is None:
            return _empty()
        env, items_db, vectors_db, meta_db = opened
        with env.begin() as txn:
            version = int(txn.get(b"version", db=meta_db) or b"0")
            stored = list(txn.cursor(db=items_db))
            raw = [txn.get(key, db=vectors_db) for key, _ in stored]
        items = [Item.model_validate_json(value) for _, value in stored]
        dim = max((len(value) // 4 - 4 for value in raw if value), default=0)
        vectors = np.zeros((len(items), dim), np.float32)
        encoded = np.zeros(len(items), bool)
        stamps = np.zeros((len(items), _STAMP), np.uint8)
        for row, value in enumerate(raw):
            if value and len(value) == _STAMP + 4 * dim:
                vectors[row], encoded[row] = np.frombuffer(value, np.float32, offset=_STAMP), True
                stamps[row] = np.frombuffer(value, np.uint8, count=_STAMP)
        return CatalogSnapshot(
            version=version,
            ids=[item.item_id for item in items],
            hashes=np.array([int.from_bytes(key, "big") for key, _ in stored], np.uint64),
            titles=[item.title for item in items],
            categories=[list(item.categories) for item in items],
            texts=[item.text() for item in items],
            available=np.array([item.available for item in items], bool),
            vectors=vectors,
            encoded=encoded,
            stamps=stamps,
            attributes=[item.attributes or _NO_ATTRIBUTES for item in items],
        )

    def close(self) -> None:
        """Close the environment; no read may follow."""
        if self._opened is not None:
            environment.close(self._opened[0])
            self._opened = None

    def _number(self, key: bytes) -> int:
        opened = self._open()
        if opened is None:
            return 0
        with opened[0].begin(db=opened[3]) as txn:
            return int(txn.get(key) or b"0")

    def _open(self) -> "tuple[lmdb.Environment, Database, Database, Database] | None":
        if self._opened is None:
            env = environment.open_reader(self._dir)
            if env is None:
                return None
            try:
                items, vectors, meta = environment.open_databases(env, b"items", b"vectors", b"meta")
            except lmdb.Error:
                environment.close(env)
                return None  # the writer is still creating it
            self._opened = env, items, vectors, meta
        return self._opened


def _stamp(encoder: str, text: str, guard: Guard | None = None) -> bytes:
    """16 bytes that change with encoder, text and guard; without a guard, what they were before there was one."""
    stamp = _digest(f"{encoder}\0{text}", _STAMP)
    return stamp if guard is None else stamp[:_OF_TEXT] + _digest(guard.fingerprint, _STAMP - _OF_TEXT)


def _digest(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=size).digest()


def _count(txn: Any, db: "Database", key: bytes, amount: int) -> None:
    txn.put(key, str(int(txn.get(key, db=db) or b"0") + amount).encode(), db=db)


def _empty() -> CatalogSnapshot:
    return CatalogSnapshot(
        version=0,
        ids=[],
        hashes=np.empty(0, np.uint64),
        titles=[],
        categories=[],
        texts=[],
        available=np.empty(0, bool),
        vectors=np.empty((0, 0), np.float32),
        encoded=np.empty(0, bool),
        stamps=np.empty((0, _STAMP), np.uint8),
        attributes=[],
    )
