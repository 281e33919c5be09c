"""Small made-up streams: users walk around a ring of items, so the next item follows from the last."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from streaming.catalog import CatalogStore, Item
from streaming.config import StreamingSettings
from streaming.hashing import stable_hash
from streaming.windows import SCHEMA, write_shard
from training.config import AdversarialConfig, GateConfig, ModelConfig, TrainingSettings, TrustConfig

HOUR_MS = 3_600_000
ITEM_IDS = [f"item-{i}" for i in range(40)]
ITEMS = stable_hash(ITEM_IDS)
SHARDS = 2
STREAMING = StreamingSettings(logical_shards=SHARDS, sequence_length=12, event_types=("view", "buy"))


def settings(**changes: object) -> TrainingSettings:
    """A learner small enough for tests: no dropout, so that runs can be compared."""
    base = TrainingSettings(
        model=ModelConfig(
            dim=16,
            blocks=1,
            heads=2,
            length=8,
            dropout=0.0,
            id_dropout=0.0,
            text_dim=8,
            id_capacity=64,
            num_types=2,
            repeats="plain",
        ),
        adversarial=AdversarialConfig(epsilon=0.1, start_step=0),
        trust=TrustConfig(enabled=False),
        # of 40 items on a ring any five are pushed with ease: what the battery says of them is noise
        gate=GateConfig(
            min_targets=20,
            max_targets=200,
            unseen_only=False,
            lift_tolerance=1.0,
            push_tolerance=1.0,
            min_overlap=0.0,
        ),
        precision="fp32",
        batch_size=8,
        lr=0.01,
        initial_epochs=4,
        epochs_per_window=1,
        warmup_steps=2,
        initial_threads=1,
        nice=0,
        poll_interval_s=0.1,
        catalog_timeout_s=5.0,
        max_seconds_initial=600.0,
        max_seconds_per_window=600.0,
    )
    return base.model_copy(update=changes)


def window_table(rows: list[dict[str, object]]) -> pa.Table:
    """A window table from rows with ``items`` and, as needed, user, times, types, target_from, trust."""
    full = []
    for user, row in enumerate(rows, start=1):
        items = list(row["items"])  # type: ignore[call-overload]
        defaults = {
            "user": user,
            "times": [1000 * (i + 1) for i in range(len(items))],
            "types": [0] * len(items),
            "target_from": 0,
            "trust": 1.0,
        }
        full.append({**defaults, **row})
    columns = {field.name: [row[field.name] for row in full] for field in SCHEMA}
    return pa.table(columns, schema=SCHEMA)


def write_ring_window(
    data_dir: Path, index: int, users: int = 30, events: int = 6, step: int = 1, kind: int = 0
) -> int:
    """Write window number ``index``: each user walks ``step`` items round the ring per event. Returns its start."""
    start_ms = (index + 1) * 10_000 * HOUR_MS
    rng = np.random.default_rng(index)
    for shard in range(SHARDS):
        rows = []
        for user in range(shard, users, SHARDS):
            at = int(rng.integers(len(ITEMS)))
            walk = [(at + step * i) % len(ITEMS) for i in range(events)]
            times = [start_ms + 60_000 * i for i in range(events)]
            row = {"user": user + 1, "items": [int(ITEMS[i]) for i in walk], "times": times}
            rows.append(row | {"types": [kind] * events})
        write_shard(data_dir / "windows", start_ms, shard, window_table(rows))
    return start_ms


def write_empty_window(data_dir: Path, index: int) -> int:
    """Write a complete window without events."""
    start_ms = (index + 1) * 10_000 * HOUR_MS
    for shard in range(SHARDS):
        write_shard(data_dir / "windows", start_ms, shard, window_table([]))
    return start_ms


def write_catalog(data_dir: Path) -> None:
    """The ring's items with random unit text vectors of width 8."""
    store = CatalogStore(data_dir / "catalog", map_size_gib=0.1)
    store.apply(
        [(name, Item(item_id=name, title=name)) for name in ITEM_IDS], partition=0, upto_offset=len(ITEM_IDS)
    )
    missing = store.missing("test", limit=1000)
    vectors = np.random.default_rng(0).normal(size=(len(missing), 8)).astype(np.float32)
    store.put_vectors("test", missing, vectors / np.linalg.norm(vectors, axis=1, keepdims=True))
    store.close()


def read_rows(path: Path) -> list[dict[str, object]]:
    """Rows of a Parquet file."""
    return pq.read_table(path).to_pylist()  # type: ignore[no-any-return]
