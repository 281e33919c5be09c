"""What the serving benchmark is served from: a catalogue, a model, and many users' state, made by the real writers.

Names are those of `workload`: users `u000000` and on, items `i00000` and on. Text vectors are random unit vectors and
the model's weights are random: a ranking costs the same whatever it says. Making 10,000 items and 20,000 users with
50 events each takes about 15 s.
"""

import json
import shutil
import time
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from services.settings import Settings, make_settings
from streaming.batcher import Batcher, Cursor, Layout, ShardRoute
from streaming.catalog import CatalogReader, CatalogStore, Item
from streaming.config import StreamingSettings
from streaming.events import EventDecoder
from streaming.hashing import hash_one
from streaming.intake import Decoded
from streaming.state import open_store
from tests.bench.workload import TYPES
from training.bundle import save_bundle
from training.config import ModelConfig
from training.items import ItemSlots, build_table
from training.model import SequenceModel
from training.registry import Registry

MAP_SIZE_GIB = 0.5
VERSION = "v0001"
_TEXT_DIM = 384
_USERS_AT_ONCE = 1000
_HISTORY_S = 7 * 86_400
_FORMAT = 1  # a world of another number is made anew


@dataclass(frozen=True)
class Shape:
    """How large a world is. With no users there is no state: events will come."""

    items: int = 10_000
    users: int = 20_000
    events: int = 50  # of each user


def world_settings(folder: Path, port: int, window_s: float = 3600) -> Settings:
    """Settings that serve a world; all that is not a place stands at its default."""
    return make_settings(
        {
            "data_dir": folder,
            "streaming": {"map_size_gib": MAP_SIZE_GIB, "windows": {"length_s": window_s}},
            "serving": {"port": port},
        }
    )


def make_world(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Make a world in a folder, or leave the one that stands there if it is the same."""
    made, wanted = folder / "made.json", json.dumps({"format": _FORMAT, "seed": seed} | asdict(shape))
    if made.is_file() and made.read_text() == wanted:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    streaming = world_settings(folder, 8000, window_s=50 * 365 * 86_400).streaming  # no window closes
    make_catalogue(folder, shape.items, rng)
    make_bundle(folder, shape.items, streaming, seed)
    if shape.users:
        make_state(folder, shape, streaming, rng)
    made.write_text(wanted)


def make_catalogue(folder: Path, items: int, rng: np.random.Generator) -> None:
    """Items with titles, categories and text vectors."""
    with closing(CatalogStore(folder / "catalog", MAP_SIZE_GIB)) as store:
        named = [
            Item(item_id=f"i{n:05d}", title=f"Item number {n}", categories=(f"category {n % 20}",))
            for n in range(items)
        ]
        store.apply([(item.item_id, item) for item in named], 0, items - 1)
        vectors = rng.normal(size=(items, _TEXT_DIM)).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        texts = [(hash_one(item.item_id).to_bytes(8, "big"), item.text()) for item in named]
        store.put_vectors("random", texts, vectors)


def make_bundle(folder: Path, items: int, streaming: StreamingSettings, seed: int) -> None:
    """A promoted model of the default shape, with random weights, over the catalogue."""
    torch.manual_seed(seed)
    shape = ModelConfig(text_dim=_TEXT_DIM, num_types=len(streaming.event_types))
    slots = ItemSlots(shape.id_capacity)
    seen = np.array([hash_one(f"i{n:05d}") for n in range(min(items, shape.id_capacity))], np.uint64)
    slots.touch(seen, 0)
    with closing(CatalogReader(folder / "catalog")) as reader:
        now = reader.snapshot()
    table = build_table(slots, now.hashes, now.ids, now.vectors, seen, _TEXT_DIM)
    share = 1 / np.arange(1, len(table) + 1, dtype=np.float32)
    save_bundle(
        folder / "models",
        VERSION,
        model=SequenceModel(shape).eval(),
        table=table,
        popularity=share / share.sum(),
        event_types=streaming.event_types,
        evaluation={},
        lineage={"windows": [], "parent": None, "created_at": time.time()},
    )
    Registry(folder / "models").promote(VERSION, "the benchmark's model")


def make_state(folder: Path, shape: Shape, streaming: StreamingSettings, rng: np.random.Generator) -> None:
    """The newest events of every user, applied as a shard applies them: one partition, some users at a time."""
    shards = tuple(range(streaming.logical_shards))
    batcher = Batcher(streaming, (0,), Layout(0, (ShardRoute(None, shards),)), [0])
    decoder = EventDecoder(streaming)
    now_ms = int(time.time() * 1000)
    with ExitStack() as opened:
        stores = [
            opened.enter_context(open_store(folder / "state", folder / "windows", shard, streaming))
            for shard in shards
        ]
        for first in range(0, shape.users, _USERS_AT_ONCE):
            count = min(_USERS_AT_ONCE, shape.users - first) * shape.events
            offsets = np.arange(first * shape.events, first * shape.events + count)
            values = _records(offsets, shape, now_ms, rng)
            events, rejected = decoder.decode(values)
            assert not rejected, rejected[0]
            ingested_ms = np.full(count, now_ms)
            upto, none = int(offsets[-1]), np.empty(0, np.int64)
            decoded = Decoded(events, offsets, ingested_ms, upto, none, count)
            [batch] = batcher.records([(Cursor(0, int(offsets[0])), decoded)])
            for shard, store in zip(shards, stores, strict=True):
                store.apply(batch.part(shard, len(shards)))


def _records(offsets: np.ndarray, shape: Shape, now_ms: int, rng: np.random.Generator) -> list[bytes]:
    """One user's events after the other's, each user's at rising times within the last days."""
    count = len(offsets)
    users, items = offsets // shape.events, rng.integers(0, shape.items, count)
    ages_ms = -np.sort(-rng.integers(0, _HISTORY_S * 1000, (count // shape.events, shape.events)), axis=1)
    times, kinds = now_ms - ages_ms.reshape(-1), rng.integers(0, len(TYPES), count)
    columns = (offsets, users, items, kinds, times)
    return [
        b'{"event_id": "w%d", "user_id": "u%06d", "item_id": "i%05d", "type": "%s", "timestamp": %d}'
        % (offset, user, item, TYPES[kind].encode(), time_ms)
        for offset, user, item, kind, time_ms in zip(*(c.tolist() for c in columns), strict=True)
    ]
