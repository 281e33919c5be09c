"""The folder that a new Ray cluster starts from: `k8s/base/seed.sh`, run for real."""

import fcntl
import os
import subprocess

from streaming.layout import own, shard_path
from tests.k8s.rendering import K8S
from training.registry import Registry


def seed(volume, cluster):
    return subprocess.run(
        ["sh", str(K8S / "base" / "seed.sh"), str(volume), cluster],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def cluster(volume, name, age_s=0):
    folder = volume / name
    write(folder / "layout.json", "{}")
    os.utime(folder / "layout.json", (1_000_000 - age_s, 1_000_000 - age_s))
    write(folder / "windows" / "start=2026-11-22T00-00-00Z" / "shard=0.parquet", f"window of {name}")
    write(folder / "models" / "v1" / "manifest.json", "{}")
    write(folder / "models" / "current", "v1\n")
    write(
        folder / "models" / "history.jsonl",
        '{"version": "v1", "action": "promoted", "reason": "", "at": 1}\n',
    )
    write(folder / "models" / ".v2-77" / "model.safetensors", "half")
    write(folder / "trust" / "decisions.jsonl", "{}\n")
    write(folder / "learner" / "trained.jsonl", "{}\n")
    write(folder / "learner" / "stop", "")
    write(folder / "state" / "shard=0000" / "data.mdb", "state")
    write(folder / "catalog" / "data.mdb", "catalogue")
    return folder


def test_the_first_cluster_starts_empty(tmp_path):
    assert "starts empty" in seed(tmp_path, "headrace-a")
    assert list((tmp_path / "headrace-a").iterdir()) == []


def test_a_new_cluster_takes_over_what_was_learned_but_no_state(tmp_path):
    before = cluster(tmp_path, "headrace-a")
    seed(tmp_path, "headrace-b")
    after = tmp_path / "headrace-b"
    assert {entry.name for entry in after.iterdir()} == {"windows", "models", "trust", "learner"}
    assert Registry(after / "models").current() == "v1"
    assert not (after / "learner" / "stop").exists()
    assert not (after / "models" / ".v2-77").exists()
    window = "windows/start=2026-11-22T00-00-00Z/shard=0.parquet"
    assert (after / window).samefile(before / window)  # a link: no space, and nobody writes to it


def test_what_either_cluster_then_writes_is_its_own(tmp_path):
    before = cluster(tmp_path, "headrace-a")
    seed(tmp_path, "headrace-b")
    after = tmp_path / "headrace-b"
    for name in ("models/history.jsonl", "models/current", "trust/decisions.jsonl", "learner/trained.jsonl"):
        assert not (after / name).samefile(before / name), name
        with (after / name).open("a") as out:
            out.write("more\n")
        assert "more" not in (before / name).read_text(), name


def test_the_cluster_in_use_goes_before_a_younger_one_that_failed(tmp_path):
    active = cluster(tmp_path, "headrace-a", age_s=500)
    cluster(tmp_path, "headrace-b")
    descriptor = own(shard_path(active / "state", 0))
    try:
        assert "starts from " + str(active) in seed(tmp_path, "headrace-c")
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
    assert "starts from " + str(tmp_path / "headrace-b") in seed(tmp_path, "headrace-d")


def test_a_restarted_pod_keeps_its_folder(tmp_path):
    kept = cluster(tmp_path, "headrace-a")
    assert "is there already" in seed(tmp_path, "headrace-a")
    assert (kept / "state" / "shard=0000" / "data.mdb").read_text() == "state"


def test_an_interrupted_start_leaves_nothing_that_counts(tmp_path):
    cluster(tmp_path, "headrace-a")
    write(tmp_path / ".seed-headrace-b" / "models" / "current", "torn")
    seed(tmp_path, "headrace-b")
    assert (tmp_path / "headrace-b" / "models" / "current").read_text() == "v1\n"
    assert not (tmp_path / ".seed-headrace-b").exists()
