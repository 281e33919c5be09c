"""The training benchmark's own arithmetic: what is counted, what is compared, and that both do the same work."""

import argparse
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from services.datasets import INTERACTIONS, ITEMS, Dataset
from tests.bench.peers import BenchError, run_module
from tests.bench.train import (
    HELD_OUT,
    NAMES,
    check_same_work,
    figures,
    lengths_of,
    make_report,
    spec_of,
    speed_table,
    systems,
    training_window,
)
from tests.bench.train_headrace import count
from training.data import cut, from_window

OPTIONS = argparse.Namespace(batch=8, threads=1, warm_up=0.05, seconds=0.05)


def turn(targets, rows, **changes):
    counts = {"targets": targets, "rows": rows, "steps": 4, "seconds": 2.0, "mean_context": 20.0}
    work = {"targets_per_epoch": 1000, "items": 40, "loss_is_finite": True}
    return figures(counts | work | changes)


def ring(users=20, events=12, items=10):
    rows = [
        (f"u{u}", f"i{(u + at) % items}", 1000 * (at * users + u))
        for at in range(events)
        for u in range(users)
    ]
    user, item, time_ms = map(list, zip(*rows, strict=True))
    many = len(rows)
    interactions = pa.table([user, item, time_ms, ["rating"] * many, [1.0] * many], schema=INTERACTIONS)
    ids = [f"i{at}" for at in range(items)]
    return Dataset("ring", interactions, pa.table([ids, ids, [""] * items, [[]] * items], schema=ITEMS))


def test_targets_are_the_headline_and_rows_stand_beside_them():
    rounds = [
        {"headrace": turn(8000, 200), "recbole": turn(2000, 2000), "recbole@200": turn(400, 400)},
        {"headrace": turn(6000, 150), "recbole": turn(1000, 1000), "recbole_own_batch": turn(3000, 3000)},
        {"headrace": turn(9000, 220), "recbole": turn(1600, 1600), "headrace@200": turn(2000, 10)},
    ]
    report = make_report(rounds, [50, 200])
    assert report["sequences_per_s"] == {"headrace": 4000, "recbole": 800}
    assert report["ratio"] == 5.0
    assert report["batch_rows_per_s"] == {"headrace": 100, "recbole": 800}
    assert report["ratio_to_better"] == 2.67
    assert report["mean_context"] == {"headrace": 20, "recbole": 20}
    assert report["by_length"]["200"] == {"headrace": 1000, "recbole": 200, "ratio": 5.0}
    assert "targets per second" in report["unit"]
    json.dumps(report)


def test_what_was_not_measured_is_null():
    report = make_report([{"headrace": turn(8000, 200)}], [50])
    assert report["sequences_per_s"] == {"headrace": 4000, "recbole": None}
    assert (report["ratio"], report["ratio_to_better"], report["ratio_row_per_target"]) == (None, None, None)
    assert report["workers"] == {"1": None, "2": None, "speed_up": None}


def test_two_workers_are_compared_with_one():
    rounds = [{"headrace_1_worker": turn(2000, 50), "headrace_2_workers": turn(3600, 90)}]
    assert make_report(rounds, [50])["workers"] == {"1": 1000, "2": 1800, "speed_up": 1.8}


def test_the_table_names_every_system_and_length():
    rounds = [{name: turn(8000, 200) for name in NAMES} | {"headrace@200": turn(900, 9)}]
    settings = {"lengths": [50, 200], "batch": 128, "threads": 2}
    report = make_report(rounds, [50, 200], settings=settings, machine={"cores": 2, "cpu": "some"})
    console = Console(width=160, record=True, quiet=False)
    with console.capture() as shown:
        console.print(speed_table(report))
    for label in (*NAMES.values(), "Headrace, fp32, length 200"):
        assert label in shown.get()


def test_systems_that_do_other_work_are_no_result():
    same = {"headrace": turn(8, 2), "recbole": turn(8, 8)}
    check_same_work([same])
    with pytest.raises(BenchError, match="same targets_per_epoch"):
        check_same_work([same | {"recbole": turn(8, 8, targets_per_epoch=999)}])
    with pytest.raises(BenchError, match="not finite"):
        turn(8, 2, loss_is_finite=False)
    with pytest.raises(BenchError, match="--seconds"):
        turn(0, 0, steps=0)


def test_both_are_told_the_same_but_for_what_a_name_says():
    ours, theirs = (spec_of(name, 50, OPTIONS) for name in ("headrace", "recbole"))
    assert {name: ours[name] for name in theirs} == theirs
    assert spec_of("recbole_own_batch", 50, OPTIONS) == theirs | {"batch": 2048}
    assert spec_of("headrace_prefixes", 50, OPTIONS) == ours | {"overlap": 49}
    assert spec_of("headrace_2_workers", 50, OPTIONS) == ours | {"threads": 1, "workers": 2}


def test_rows_are_counted_as_they_are_cut():
    sequences = from_window(training_window(ring(users=3, events=12)))
    assert np.diff(sequences.offsets).tolist() == [12 - HELD_OUT] * 3
    whole = count([cut(sequences, 50)])
    assert (whole["rows"], whole["targets"], whole["mean_context"]) == (3, 27, 5.0)
    # a row per target, as RecBole cuts: the context grows to the length and stays there
    prefixes = count([cut(sequences, 4, overlap=3)])
    assert (prefixes["rows"], prefixes["targets"]) == (27, 27)
    assert prefixes["mean_context"] == pytest.approx((1 + 2 + 3 + 4 * 6) / 9, abs=0.05)


@pytest.mark.parametrize("name", ["headrace_prefixes", "headrace_2_workers"])
def test_the_learners_own_round_is_measured(name: str, tmp_path: Path):
    import pyarrow.parquet as pq

    dataset, window = ring(), tmp_path / "window.parquet"
    pq.write_table(training_window(dataset), window)
    spec = spec_of(name, 6, OPTIONS) | {"dim": 8, "blocks": 1, "window": str(window)}
    spec["item_ids"] = dataset.items["item_id"].to_pylist()
    found = figures(run_module("train_headrace", spec, tmp_path / "log"))
    assert found["targets_per_epoch"] == 20 * (12 - HELD_OUT - 1)
    assert found["items"] == 10
    assert found["steps"] > 0
    assert found["targets_per_s"] >= found["batch_rows_per_s"] > 0


def test_options_are_read_or_refused():
    assert systems("recbole, headrace") == ["headrace", "recbole"]
    assert lengths_of("50,200") == [50, 200]
    for wrong in ("50,", "1", "50,50", "fifty"):
        with pytest.raises(BenchError, match="--lengths"):
            lengths_of(wrong)
    with pytest.raises(BenchError, match="gru4rec"):
        systems("gru4rec")
