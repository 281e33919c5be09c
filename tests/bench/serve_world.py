"""What the serving benchmark is served from: a catalogue, a model, and many users' state, made by the real writers.

Names are those of `workload`: users `u000000` and on, items `i00000` and on. Text vectors lie around the centres of
random groups, as texts of a catalogue do, and the model's weights are random: a ranking costs the same whatever it
says. Making 10,000 items and 20,000 users with 50 events each takes about 15 s.
"""

import json
import os
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
from streaming.rows import row_dtype
from streaming.state import open_store
from tests.bench.workload import TYPES
from training.bundle import FORMAT as BUNDLE_FORMAT
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
_IN_GROUP = 50  # items on average
_SPREAD = 0.7  # of a group, as a share of its centre's length
_FORMAT = 2  # of what is made here; a world of another one is made anew


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
    settings = world_settings(folder, 8000, window_s=50 * 365 * 86_400)  # no window closes
    formats = (_FORMAT, BUNDLE_FORMAT, row_dtype(settings.streaming).itemsize)
    made, wanted = folder / "made.json", json.dumps({"formats": formats, "seed": seed} | asdict(shape))
    if made.is_file() and made.read_text() == wanted:
        return
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    make_catalogue(unfinished, shape.items, rng)
    make_bundle(unfinished, shape.items, settings, seed)
    if shape.users:
        make_state(unfinished, shape, settings.streaming, rng)
    (unfinished / made.name).write_text(wanted)
    shutil.rmtree(folder, ignore_errors=True)
    unfinished.rename(folder)


def index_of(folder: Path) -> dict[str, float] | None:
    """What the bundle says about its index; None where items are scored one by one."""
    config: dict[str, dict[str, float]] = json.loads(
        (folder / "models" / VERSION / "config.json").read_text()
    )
    return config.get("index")


def make_catalogue(folder: Path, items: int, rng: np.random.Generator) -> None:
    """Items with titles, categories and text vectors."""
    with closing(CatalogStore(folder / "catalog", MAP_SIZE_GIB)) as store:
        named = [
            Item(item_id=f"i{n:05d}", title=f"Item number {n}", categories=(f"category {n % 20}",))
            for n in range(items)
        ]
        store.apply([(item.item_id, item) for item in named], 0, items - 1)
        centres = _unit(rng.normal(size=(max(1, items // _IN_GROUP), _TEXT_DIM)))
        noise = _unit(rng.normal(size=(items, _TEXT_DIM)))
        vectors = _unit(centres[rng.integers(0, len(centres), items)] + _SPREAD * noise).astype(np.float32)
        texts = [(hash_one(item.item_id).to_bytes(8, "big"), item.text()) for item in named]
        store.put_vectors("random", texts, vectors)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def make_bundle(folder: Path, items: int, settings: Settings, seed: int) -> None:
    """A promoted model of the default shape, with random weights, over the catalogue; with an index if large."""
    torch.manual_seed(seed)
    streaming = settings.streaming
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
        index_items=settings.training.index_items,
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
