"""The learner on a real Ray, with a real DeepSpeed engine: one long story and two variations of its beginning."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from streaming.config import StreamingSettings
from tests.training.synthetic import (
    ITEM_IDS,
    STREAMING,
    settings,
    write_catalog,
    write_empty_window,
    write_ring_window,
)
from training.bundle import load_bundle
from training.config import DeepSpeedConfig, TrainingSettings
from training.learner import Learner, read_status
from training.registry import Registry

GATE = settings().gate.model_copy(update={"ndcg_tolerance": 0.3, "attacked_ndcg_tolerance": 0.3})
# long rounds at a rate that a poisoned window cannot hide from, and that leave time to kill a worker in
STORY = {"gate": GATE, "epochs_per_window": 40, "window_lr": 0.02, "replay_ratio": 0.0}


class Running:
    """A learner at work in a thread of this process; workers are Ray's."""

    def __init__(
        self, data_dir: Path, training: TrainingSettings, streaming: StreamingSettings = STREAMING
    ) -> None:
        self.data_dir, self.registry = data_dir, Registry(data_dir / "models")
        self.learner = Learner(data_dir, streaming, training)
        self.error: Exception | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.learner.run()
        except Exception as error:
            self.error = error

    def wait(self, reached: Callable[[], bool], what: str, timeout_s: float = 180.0) -> None:
        deadline = time.monotonic() + timeout_s
        while not reached():
            assert self.thread.is_alive(), f"the learner ended before {what}: {self.error}"
            assert time.monotonic() < deadline, (
                f"no {what} within {timeout_s} s: {read_status(self.data_dir)}"
            )
            time.sleep(0.05)

    def wait_for_verdict(self, version: str) -> str:
        self.wait(lambda: self.registry.verdict(version) != "candidate", f"verdict on {version}")
        return self.registry.verdict(version)

    def stop(self) -> None:
        began = time.monotonic()
        self.learner.stop()
        self.thread.join(timeout=15)
        assert not self.thread.is_alive()
        assert self.error is None
        assert time.monotonic() - began < 10
        assert read_status(self.data_dir)["phase"] == "stopped"

    def training(self, version: str) -> dict[str, Any]:
        lineage = json.loads((self.registry.path(version) / "lineage.json").read_text())
        return {**lineage["training"], "windows": lineage["windows"]}

    def trained_windows(self) -> Counter[str]:
        lines = (self.data_dir / "learner" / "trained.jsonl").read_text().splitlines()
        return Counter(window for line in lines for window in json.loads(line)["windows"])


def begin(data_dir: Path, **changes: object) -> Running:
    write_catalog(data_dir)
    for index in range(4):
        if index == 1:
            write_empty_window(data_dir, index)
        else:
            write_ring_window(data_dir, index)
    return Running(data_dir, settings(**STORY, **changes))


@pytest.fixture(scope="module")
def story(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One worker: three good windows, then a poisoned one, then good ones again."""
    running = begin(tmp_path_factory.mktemp("story"))
    running.wait_for_verdict("v0001")
    write_ring_window(running.data_dir, 4)
    running.wait_for_verdict("v0002")
    write_ring_window(running.data_dir, 5, step=-7)
    running.wait_for_verdict("v0003")
    write_ring_window(running.data_dir, 6)
    running.wait_for_verdict("v0004")
    write_ring_window(running.data_dir, 7)
    running.wait_for_verdict("v0005")
    running.stop()
    return running


def test_each_window_is_trained_once_and_judged_unseen(story: Running) -> None:
    assert [len(story.training(f"v000{n}")["windows"]) for n in range(1, 6)] == [3, 1, 1, 1, 1]
    assert set(story.trained_windows().values()) == {1}
    for info in story.registry.versions():
        lineage = json.loads((story.registry.path(info.version) / "lineage.json").read_text())
        assert not set(lineage["windows"]) & set(lineage["exam_windows"])
        assert max(lineage["windows"]) < min(lineage["exam_windows"])


def test_what_was_learned_is_served(story: Running) -> None:
    version = story.registry.current()
    assert version is not None
    bundle = load_bundle(story.registry.path(version))
    assert sorted(bundle.item_ids) == sorted(ITEM_IDS)
    assert bundle.event_types == STREAMING.event_types
    assert (bundle.item_slots >= 0).all()
    assert bundle.popularity.sum() == pytest.approx(1.0, abs=1e-5)
    assert story.registry.verdict("v0001") == "promoted"
    first, last = (story.training(v) for v in ("v0001", "v0002"))
    assert last["loss"] < first["loss_first"] / 2


def test_poison_is_rejected_and_training_goes_back(story: Running) -> None:
    eval_of = {info.version: info.eval for info in story.registry.versions()}
    assert story.registry.verdict("v0004") == "rejected"
    assert "is below" in eval_of["v0004"]["reason"]
    assert story.training("v0005")["from"] == eval_of["v0004"]["incumbent"]["version"]
    assert story.registry.verdict("v0005") == "promoted", eval_of["v0005"]["reason"]


def test_the_status_tells_the_story(story: Running) -> None:
    status = read_status(story.data_dir)
    counts = story.registry.counts()
    assert {name: status[name] for name in counts} == counts
    assert counts["trained"] == 5
    assert status["error"] is None
    assert status["loss"] > 0
    assert status["adversarial_loss"] > 0
    assert abs(time.time() - status["updated_at"]) < 600


def same_beginning(story: Running, other: Running) -> None:
    for version in ("v0001", "v0002"):
        expected, seen = story.training(version), other.training(version)
        assert seen["windows"] == expected["windows"]
        assert seen["losses_head"] == pytest.approx(expected["losses_head"], rel=1e-3)
        assert seen["loss"] == pytest.approx(expected["loss"], rel=2e-2)
        assert seen["steps"] == expected["steps"]


def test_two_workers_see_the_same_loss_as_one(story: Running, tmp_path: Path) -> None:
    running = begin(tmp_path, num_workers=2)
    running.wait_for_verdict("v0001")
    write_ring_window(tmp_path, 4)
    running.wait_for_verdict("v0002")
    running.stop()
    same_beginning(story, running)


def test_zero_2_with_a_worker_killed_in_mid_window_ends_the_same(story: Running, tmp_path: Path) -> None:
    running = begin(tmp_path, num_workers=2, deepspeed=DeepSpeedConfig(stage=2))
    running.wait_for_verdict("v0001")
    write_ring_window(tmp_path, 4)

    def in_the_middle() -> bool:
        status = read_status(tmp_path)
        return status["phase"] == "training" and status["detail"].startswith("v0002") and status["step"] > 10

    running.wait(in_the_middle, "second round")
    killed = read_status(tmp_path)["pid"]
    os.kill(killed, signal.SIGKILL)
    assert running.registry.verdict("v0002") == "candidate"
    running.wait_for_verdict("v0002")
    assert read_status(tmp_path)["pid"] != killed
    running.stop()
    assert set(running.trained_windows().values()) == {1}
    assert len(running.trained_windows()) == 4
    same_beginning(story, running)


def test_an_event_type_that_came_later_is_learned(story: Running) -> None:
    more = STREAMING.model_copy(update={"event_types": (*STREAMING.event_types, "like")})
    running = Running(story.data_dir, settings(**STORY), more)
    write_ring_window(story.data_dir, 8, kind=2)
    verdict = running.wait_for_verdict("v0006")
    running.stop()
    reasons = {info.version: info.eval["reason"] for info in running.registry.versions()}
    assert verdict == "promoted", reasons["v0006"]
    bundle = load_bundle(running.registry.path("v0006"))
    assert (bundle.config.num_types, bundle.event_types) == (3, more.event_types)
    before = load_bundle(running.registry.path("v0005")).model.type_embedding.weight
    assert torch.allclose(bundle.model.type_embedding.weight[2], before[0], atol=0.5)


THREE_STEPS = """
import logging, sys, torch, torch.distributed as dist
logging.basicConfig(level=logging.WARNING)
from tests.training.synthetic import settings, window_table
from training.config import DeepSpeedConfig
from training.data import cut, from_window, make_batch
from training.engine import build_engine, device_of, full_weights, prepare
device = device_of(settings())
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
prepare(device)
sequences = from_window(window_table([{"items": [1, 2, 3, 4]}, {"items": [5, 6, 7]}]))
batch = make_batch(sequences, sequences.items.astype("int64"), cut(sequences, 6))
text = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
for stage in range(4):
    engine = build_engine(settings().model, settings(deepspeed=DeepSpeedConfig(stage=stage)), device)
    engine.train()
    for _ in range(3):
        mixed, clean, adversarial = engine(
            batch, text.clone().requires_grad_(stage == 3), torch.arange(40), strength=1.0
        )
        engine.backward(mixed / 5)
        engine.step()
    print("stage", stage, float(clean), float(adversarial), float(full_weights(engine)["id_embedding.weight"].sum()))
    engine.destroy()
"""


def test_without_a_compiler_every_zero_stage_trains_alike_with_a_notice(tmp_path: Path) -> None:
    environment = {
        "PATH": str(tmp_path),
        "HOME": str(tmp_path),
        "TORCH_EXTENSIONS_DIR": str(tmp_path / "built"),
    }
    identity = {
        "RANK": "0",
        "LOCAL_RANK": "0",
        "WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
    ran = subprocess.run(
        [sys.executable, "-c", THREE_STEPS, str(tmp_path / "rendezvous")],
        env={**environment, **identity},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    lines = [line.split() for line in ran.stdout.splitlines() if line.startswith("stage")]
    assert len(lines) == 4, ran.stderr[-2000:]
    for line in lines[1:]:
        assert [float(x) for x in line[2:]] == pytest.approx([float(x) for x in lines[0][2:]], rel=1e-4)
    assert "no C++ compiler found" in ran.stderr
    assert not (tmp_path / "built").exists()
