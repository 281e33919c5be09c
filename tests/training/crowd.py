"""A made-up crowd: people with tastes who come and go, and windows of what they did."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from streaming.windows import SCHEMA, write_shard
from tests.training.synthetic import HOUR_MS, SHARDS
from training.attacks import ATTACKS, Budget
from training.data import Sequences, from_window
from training.trust.simulation import view_of

ITEMS = 300
LENGTH_MS = 24 * HOUR_MS
HASHES = np.random.default_rng(0).permutation(np.arange(1, ITEMS + 1)).astype(np.uint64) * np.uint64(7919)
_SHARE = 1.0 / (3 + np.arange(ITEMS))


def window_of_people(number: int, people: int = 150, most: int = 25) -> pa.Table:
    """Window ``number``: people have 2 to ``most`` items of their taste (one of five), some were there before."""
    rng = np.random.default_rng([1, number])
    start = number * LENGTH_MS
    rows = []
    for user in np.sort(rng.choice(5000, people, replace=False)):
        weights = _SHARE * np.where(np.arange(ITEMS) % 5 == user % 5, 6.0, 1.0)
        count = int(rng.integers(2, most))
        items = rng.choice(ITEMS, count, replace=False, p=weights / weights.sum())
        before = int(rng.integers(0, count)) if rng.random() < 0.5 else 0
        times = np.sort(rng.integers(0, LENGTH_MS, count)) + start
        times[:before] -= LENGTH_MS
        rows.append(
            {
                "user": int(user) + 1,
                "items": HASHES[items].tolist(),
                "times": times.tolist(),
                "types": [0] * count,
                "target_from": before,
                "trust": 1.0,
            }
        )
    return pa.Table.from_pylist(rows, schema=SCHEMA)


def people(number: int) -> Sequences:
    """The same, as the learner reads it."""
    return from_window(window_of_people(number))


def fakes(kind: str, number: int, users: int, targets: list[int], seed: int = 0) -> Sequences:
    """Fake users in window ``number`` who know the windows before it."""
    view = view_of([people(before) for before in range(number)])
    codes = np.searchsorted(view.hashes, np.sort(HASHES[targets]))
    budget = Budget(users, number * LENGTH_MS, (number + 1) * LENGTH_MS)
    found = ATTACKS[kind]().poison(view, codes, budget, np.random.default_rng(seed)).sequences
    return Sequences(**vars(found) | {"target_from": np.zeros_like(found.target_from)})


def as_table(sequences: Sequences) -> pa.Table:
    """Rows of a window, as a shard writes them."""
    bounds = sequences.offsets.astype(np.int32)
    return pa.table(
        {
            "user": pa.array(sequences.users, pa.uint64()),
            "items": pa.ListArray.from_arrays(bounds, pa.array(sequences.items, pa.uint64())),
            "times": pa.ListArray.from_arrays(bounds, pa.array(sequences.times, pa.int64())),
            "types": pa.ListArray.from_arrays(bounds, pa.array(sequences.types, pa.uint8())),
            "target_from": pa.array(sequences.target_from, pa.int32()),
            "trust": pa.array(sequences.trust, pa.float32()),
        },
        schema=SCHEMA,
    )


def write_window(data_dir: Path, number: int, table: pa.Table) -> int:
    """All rows in shard 0, the others empty; returns the window's start."""
    start = number * LENGTH_MS
    for shard in range(SHARDS):
        write_shard(data_dir / "windows", start, shard, table if shard == 0 else table.slice(0, 0))
    return start
