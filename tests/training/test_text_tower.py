"""The text encoder is really trained: every mode through the real engine, every ZeRO stage, one and two workers."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.synthetic import settings
from tests.training.tiny_text import DIM, tiny_bert, tiny_llama
from training.config import TrainingSettings
from training.encoder import load_text_encoder, pool
from training.errors import EncoderError
from training.items import ItemTable
from training.text_tower import LiveTexts, encode_table, load_tower, put_live, table_texts

Found = dict[str, dict[str, Any]]
ROOT = Path(__file__).parents[2]
MODES = ["top-n", "lora", "full"]


def run(folder: Path, world: int, cases: list[dict[str, Any]]) -> Found:
    """Train the cases in `world` fresh processes."""
    out = folder / f"found-{world}.json"
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
        "WORLD_SIZE": str(world),
        "OMP_NUM_THREADS": "1",
    }
    rest = [str(folder / f"meet-{world}"), json.dumps(cases), str(out)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.tower_run", str(rank), str(world), *rest],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            cwd=ROOT,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=150)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert all(process.returncode == 0 for process in processes), "\n".join(text[-3000:] for text in said)
    found: Found = json.loads(out.read_text())
    return found


def cases_of(bert: str, llama: str, stages: tuple[int, ...], steps: int) -> list[dict[str, Any]]:
    return [
        {
            "name": f"{kind} {mode} {stage}",
            "source": source,
            "steps": steps,
            "settings": {"finetune": mode, "deepspeed": {"stage": stage}},
        }
        for kind, source in (("bert", bert), ("llama", llama))
        for mode in MODES
        for stage in stages
    ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("models")
    return tiny_bert(folder / "bert"), tiny_llama(folder / "llama")


@pytest.fixture(scope="module")
def alone(models: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Found:
    long = cases_of(*models, stages=(0,), steps=30)
    short = [c for c in cases_of(*models, stages=(1, 2, 3), steps=3) if c["name"].startswith("bert")]
    refreshed = {
        **long[0],
        "name": "refreshed",
        "settings": {"finetune": "full", "finetune_refresh_epochs": 2},
    }
    return run(tmp_path_factory.mktemp("alone"), 1, [*long, *short, sampled_case(models[0]), refreshed])


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("mode", MODES)
def test_every_mode_learns_and_changes_what_it_says(alone: Found, kind: str, mode: str) -> None:
    found = alone[f"{kind} {mode} 0"]
    assert np.mean(found["losses"][-5:]) < 0.8 * np.mean(found["losses"][:3])
    assert found["trained"]
    assert set(found["changed"]) <= set(found["trained"])
    untouched = set(found["trained"]) - set(found["changed"])
    # the key's bias moves no attention weight: softmax is invariant to it
    assert all("key.bias" in name for name in untouched), untouched
    assert found["rates"] == pytest.approx([0.01, 0.0025])


def test_what_is_trained_is_what_the_mode_names(alone: Found) -> None:
    bert_top, llama_top = (alone[f"{kind} top-n 0"]["trained"] for kind in ("bert", "llama"))
    assert all(name.startswith("transformer.encoder.layer.2.") for name in bert_top)
    assert all(name.startswith(("transformer.layers.1.", "transformer.norm.")) for name in llama_top)
    assert "transformer.norm.weight" in llama_top
    for kind in ("bert", "llama"):
        assert all("lora_" in name for name in alone[f"{kind} lora 0"]["trained"])
        assert any("embed" in name for name in alone[f"{kind} full 0"]["trained"])
        assert not any("pooler" in name for name in alone[f"{kind} full 0"]["trained"])


@pytest.mark.parametrize("mode", MODES)
def test_every_zero_stage_trains_alike(alone: Found, mode: str) -> None:
    expected = alone[f"bert {mode} 0"]["losses"][:3]
    for stage in (1, 2, 3):
        found = alone[f"bert {mode} {stage}"]
        assert found["losses"] == pytest.approx(expected, rel=1e-4)
        assert found["changed"], "the tower stood still"


def test_a_step_encodes_the_batchs_texts_up_to_the_cap(alone: Found) -> None:
    everything, capped = alone["bert full 0"]["picked"], alone["sampled"]["picked"]
    assert all(len(rows) == 7 for rows in capped)
    assert len({tuple(rows) for rows in capped}) > 1
    assert all(set(few) < set(rows) for few, rows in zip(capped, everything, strict=False))
    assert not any(3 in rows for rows in everything), "an item without a text has none to encode"


def test_cached_vectors_are_made_anew_every_so_many_passes(alone: Found) -> None:
    assert not alone["bert full 0"]["cache_moved"]
    assert alone["refreshed"]["cache_moved"]


def test_two_workers_do_what_one_does(alone: Found, models: tuple[str, str], tmp_path: Path) -> None:
    cases = [c for c in cases_of(*models, stages=(0, 1, 2, 3), steps=3) if c["name"].startswith("bert full")]
    found = run(tmp_path, 2, [*cases, sampled_case(models[0])])
    for stage in (1, 2, 3):
        one, two = alone[f"bert full {stage}"], found[f"bert full {stage}"]
        assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
        assert two["size"] == pytest.approx(one["size"], rel=1e-5)
    assert found["bert full 0"]["losses"] == pytest.approx(alone["bert full 0"]["losses"][:3], rel=1e-4)
    assert found["sampled"]["losses"] == pytest.approx(alone["sampled"]["losses"], rel=1e-4)


def sampled_case(source: str) -> dict[str, Any]:
    changes = {"finetune": "full", "full_softmax_items": 0, "negatives": 8, "finetune_texts_per_step": 7}
    return {"name": "sampled", "source": source, "steps": 3, "settings": changes}


def tower_settings(mode: str, **changes: object) -> TrainingSettings:
    return settings(finetune=mode, **changes)


def test_pooling_follows_the_kind_of_model(models: tuple[str, str]) -> None:
    assert [load_text_encoder(source).pooling for source in models] == ["mean", "last"]
    assert load_text_encoder(models[1], "mean").pooling == "mean"
    assert load_text_encoder(models[1], "mean").fingerprint != load_text_encoder(models[1]).fingerprint
    hidden = torch.arange(24.0).view(2, 4, 3)
    last = pool(hidden, torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]]), "last")
    expected = torch.nn.functional.normalize(hidden[[0, 1], [1, 3]], dim=-1)
    assert torch.equal(last, expected)


@pytest.mark.parametrize("kind", [0, 1])
@pytest.mark.parametrize("mode", MODES)
def test_a_fresh_tower_is_the_encoder_it_came_from_and_so_is_what_it_saves(
    models: tuple[str, str], tmp_path: Path, kind: int, mode: str
) -> None:
    texts = ["item w1", "w2", "", "item w3 w4 w5"]
    encoder, tower = load_text_encoder(models[kind]), load_tower(models[kind], tower_settings(mode))
    assert np.allclose(tower.encode(texts), encoder.encode(texts), atol=1e-6)
    assert tower.fingerprint == encoder.fingerprint
    tower.save(tmp_path / "same")
    assert load_text_encoder(str(tmp_path / "same")).fingerprint == encoder.fingerprint
    with torch.no_grad():
        for parameter in tower.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    tower.save(tmp_path / "tuned")
    tuned = load_text_encoder(str(tmp_path / "tuned"))
    assert tuned.fingerprint != encoder.fingerprint
    assert np.allclose(tuned.encode(texts), tower.encode(texts), atol=1e-5)
    assert not np.allclose(tuned.encode(texts), encoder.encode(texts), atol=1e-2)


def test_live_vectors_replace_cached_ones_and_carry_the_gradient() -> None:
    live = LiveTexts(torch.tensor([1, 4, 6]), {})
    vectors = torch.ones(3, 2, requires_grad=True)
    everything = put_live(torch.zeros(8, 2), None, live, vectors)
    assert everything[:, 0].tolist() == [0, 1, 0, 0, 1, 0, 1, 0]
    some = put_live(torch.zeros(3, 2), torch.tensor([0, 4, 7]), live, vectors)
    assert some[:, 0].tolist() == [0, 1, 0]
    some.sum().backward()
    assert vectors.grad is not None
    assert vectors.grad[:, 0].tolist() == [0, 1, 0]


def test_a_table_gets_its_texts_without_a_learner(models: tuple[str, str]) -> None:
    tower = load_tower(models[0], tower_settings("full"))
    hashes = np.array([3, 5, 9], np.uint64)
    table = ItemTable(hashes, np.full(3, -1), np.zeros((3, DIM), np.float32), ["a", "b", ""])
    texts = table_texts(table, np.array([5, 3], np.uint64), ["w2", "w1"])
    assert texts == ["w1", "w2", ""]
    assert np.allclose(encode_table(tower, table, texts).text, tower.encode(["w1", "w2", ""]))
    with pytest.raises(ValueError, match="one text per row"):
        encode_table(tower, table, texts[:2])


def test_what_cannot_be_says_what_to_do(models: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EncoderError, match="finetune_layers must be at most the encoder's 3 layers; got 9"):
        load_tower(models[0], tower_settings("top-n", finetune_layers=9))
    with pytest.raises(EncoderError, match=r"lora_targets = \['nowhere'\]"):
        load_tower(models[0], tower_settings("lora", lora_targets=("nowhere",)))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(EncoderError, match=r"pip install 'headrace\[lora\]'"):
        load_tower(models[0], tower_settings("lora"))
    with pytest.raises(ValueError, match="mlm_epochs must be 0 with finetune = 'frozen'"):
        TrainingSettings(mlm_epochs=1)
