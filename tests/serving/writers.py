"""The writers of a small world, run in the test's process or, by `World.elsewhere`, in one of their own.

Only `streaming` is imported, so that another process costs half a second and not three.
"""

import json
import sys
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from streaming.batcher import Batcher, Cursor, Layout, ShardRoute
from streaming.catalog import CatalogStore, Item
from streaming.config import StreamingSettings, WindowSettings
from streaming.events import EventDecoder
from streaming.hashing import hash_one
from streaming.intake import Decoded
from streaming.state import open_store

STREAMING = StreamingSettings(
    event_types=("view", "click", "rating"),
    sequence_length=8,
    max_past_s=4e9,  # these worlds begin in 1970
    logical_shards=2,
    map_size_gib=0.05,
    windows=WindowSettings(length_s=100, lateness_s=0),
)
TEXT_DIM = 12
MINUTE = 60_000


def text_vector(text: str) -> np.ndarray:
    """A unit vector that depends on the text alone."""
    vector = np.random.default_rng(hash_one(text)).normal(size=TEXT_DIM)
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def event(user: str, item: str, minute: float, kind: str = "view") -> dict[str, Any]:
    return {
        "event_id": f"{user}-{item}-{minute}",
        "user_id": user,
        "item_id": item,
        "type": kind,
        "timestamp": int(minute * MINUTE),
    }


@dataclass
class Writers:
    """Writes the catalogue and the user state under one data folder."""

    data_dir: Path

    def publish(self, *items: dict[str, Any], encode: bool = True) -> None:
        """Put items into the catalogue; `deleted` removes one."""
        with closing(CatalogStore(self.data_dir / "catalog", map_size_gib=0.05)) as store:
            changes = [(i["item_id"], None if i.get("deleted") else Item.model_validate(i)) for i in items]
            store.apply(changes, 0, 0)
            missing = store.missing("test", 1000) if encode else []
            if missing:
                store.put_vectors("test", missing, np.stack([text_vector(text) for _, text in missing]))

    def happen(self, *events: dict[str, Any], offset: int = 0) -> None:
        """Apply events to the state stores, as one batch of partition 0 that begins at `offset`."""
        values = [json.dumps(e).encode() for e in events]
        decoded, rejected = EventDecoder(STREAMING).decode(values)
        assert not rejected
        shards = tuple(range(STREAMING.logical_shards))
        batcher = Batcher(STREAMING, (0,), Layout(0, (ShardRoute(None, shards),)), [0])
        offsets = np.arange(offset, offset + len(events))
        ingested_ms = np.full(len(events), 1_700_000_000_000)
        none = np.empty(0, np.int64)
        upto, count = int(offsets[-1]), len(events)
        [batch] = batcher.records(
            [(Cursor(0, offset), Decoded(decoded, offsets, ingested_ms, upto, none, count))]
        )
        for shard in shards:
            with open_store(self.data_dir / "state", self.data_dir / "windows", shard, STREAMING) as store:
                store.apply(batch.part(shard, len(shards)))


if __name__ == "__main__":
    folder, name, arguments, named = json.loads(sys.argv[1])
    getattr(Writers(Path(folder)), name)(*arguments, **named)
