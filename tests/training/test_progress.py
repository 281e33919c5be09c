from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.training.synthetic import settings, window_table
from training.data import concat, from_window
from training.fit import global_weight, learning_rate, local_batch, make_pool
from training.items import ItemSlots, build_table
from training.plan import Plan
from training.progress import PopularityCounts, Progress

ROWS = [
    {"items": [1, 2, 3, 4, 5, 6, 7], "target_from": 2, "trust": 0.5},
    {"items": [3, 4]},
    {"items": [5, 6, 7]},
]


def test_popularity_halves_with_age() -> None:
    counts = PopularityCounts(half_life_ms=1000.0)
    counts.add(np.array([1, 1, 2], np.uint64), np.array([0, 0, 0]))
    counts.add(np.array([2], np.uint64), np.array([1000]))
    assert counts.shares(np.array([1, 2, 3], np.uint64)).tolist() == pytest.approx([1 / 2.5, 1.5 / 2.5, 0.0])
    late = PopularityCounts(1000.0)
    late.add(np.array([2], np.uint64), np.array([1000]))
    late.add(np.array([1, 1, 2], np.uint64), np.array([0, 0, 0]))
    assert late.counts.tolist() == pytest.approx(counts.counts.tolist())


def test_progress_survives_a_checkpoint(tmp_path: Path) -> None:
    progress = Progress(ItemSlots(8), PopularityCounts(1e6), shape={"dim": 8}, tuned="lora 8")
    sequences = from_window(window_table(ROWS))
    progress.slots.touch(sequences.items, tick=1)
    assert progress.next_version == "v0001"
    progress.finish(Plan("v0001", (10, 20), (30,), (), True), sequences, {"steps": 3})
    progress.save(tmp_path)
    again = Progress.load(tmp_path)
    assert again.next_version == "v0002"
    assert (again.weights_of, again.tuned) == ("v0001", "lora 8")
    assert again.trained == {10: "v0001", 20: "v0001"}
    assert (again.plan, again.shape, again.training) == (progress.plan, {"dim": 8}, {"steps": 3})
    hashes = np.arange(9, dtype=np.uint64)
    assert again.slots.lookup(hashes).tolist() == progress.slots.lookup(hashes).tolist()
    assert again.popularity.shares(hashes).tolist() == progress.popularity.shares(hashes).tolist()
    assert again.popularity.counts.sum() == pytest.approx(
        10.0, rel=1e-2
    )  # events before target_from do not count


def test_workers_share_a_global_batch_without_loss_or_overlap() -> None:
    sequences = from_window(window_table(ROWS))
    table = build_table(
        ItemSlots(8), sequences.items[:0], [], np.zeros((0, 0), np.float32), sequences.items, 4
    )
    pool = make_pool(sequences, None, table)
    chunks = pool.epoch(settings(), np.random.default_rng(0), shift=False)
    assert global_weight(chunks, sequences.cumulative_weights()) == 0.5 * 5 + 1 + 2
    parts = [local_batch(pool, chunks, rank, 2) for rank in range(2)]
    assert sum(int((part.targets >= 0).sum()) for part in parts) == 8
    idle = local_batch(pool, chunks, rank=5, world=6)
    assert not idle.weights.any()


def test_an_event_counts_what_its_row_and_it_are_worth() -> None:
    sequences = from_window(window_table(ROWS))
    worth = np.full(len(sequences.items), 0.5, np.float32)
    half = replace(sequences, weights=worth)
    table = build_table(
        ItemSlots(8), sequences.items[:0], [], np.zeros((0, 0), np.float32), sequences.items, 4
    )
    for rows in (half, concat([half, half]).take(np.arange(3))):
        pool = make_pool(rows, None, table)
        chunks = pool.epoch(settings(), np.random.default_rng(0), shift=False)
        assert global_weight(chunks, rows.cumulative_weights()) == 0.5 * (0.5 * 5 + 1 + 2)
        batch = local_batch(pool, chunks, 0, 1)
        assert float(batch.weights[batch.targets >= 0].sum()) == 0.5 * (0.5 * 5 + 1 + 2)


def test_replay_adds_a_sample_of_older_rows() -> None:
    new, old = from_window(window_table(ROWS)), from_window(window_table([{"items": [1, 2, 3]}] * 50))
    table = build_table(ItemSlots(8), new.items[:0], [], np.zeros((0, 0), np.float32), new.items, 4)
    chosen = settings(replay_ratio=2.0)
    chunks = make_pool(new, old, table).epoch(chosen, np.random.default_rng(0), shift=False)
    assert (chunks.row < 3).sum() == 3
    assert (chunks.row >= 3).sum() == 6


def test_learning_rate_warms_up_and_comes_down() -> None:
    rates = [learning_rate(1.0, step, 10, 100, step / 100) for step in range(101)]
    assert rates[0] == pytest.approx(0.1, rel=0.01)
    assert max(rates) == pytest.approx(1.0, abs=0.05)
    assert rates[-1] == pytest.approx(0.02)
    assert learning_rate(1.0, 5000, 0, 5000, 7.0) == pytest.approx(0.02)


def test_a_short_round_reaches_its_peak_whatever_the_warm_up() -> None:
    rates = [learning_rate(1.0, step, 200, 50, step / 50) for step in range(50)]
    assert max(rates) > 0.95
