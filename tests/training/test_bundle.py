import json
from pathlib import Path

import numpy as np
import pytest
import torch

from training.bundle import Bundle, load_bundle, save_bundle
from training.config import ModelConfig
from training.errors import BundleError
from training.items import ItemTable
from training.model import SequenceModel

CONFIG = ModelConfig(dim=16, blocks=1, heads=2, length=6, text_dim=4, id_capacity=5, num_types=2)
TABLE = ItemTable(
    hashes=np.array([3, 5, 8, 9], np.uint64),
    slots=np.array([0, -1, 4, 2]),
    text=np.eye(4, dtype=np.float32),
    ids=["a", "b", "", "d"],
)


def save(folder: Path, seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    model = SequenceModel(CONFIG)
    save_bundle(
        folder,
        "v0001",
        model=model,
        table=TABLE,
        popularity=np.array([0.5, 0.0, 0.3, 0.2], np.float32),
        event_types=("view", "buy"),
        evaluation={"ndcg@10": 0.25},
        lineage={"parent": None},
    )
    return model


def load(folder: Path) -> Bundle:
    return load_bundle(folder / "v0001")


def test_round_trip(tmp_path: Path) -> None:
    model = save(tmp_path)
    bundle = load(tmp_path)
    assert bundle.version == "v0001"
    assert bundle.config == CONFIG
    assert (bundle.item_ids, bundle.item_hashes.tolist(), bundle.item_slots.tolist()) == (
        ["a", "b", "d"],
        [3, 5, 9],
        [0, -1, 2],
    )
    assert bundle.popularity.tolist() == pytest.approx([0.5, 0.0, 0.2])
    assert (bundle.history_hashes.tolist(), bundle.history_slots.tolist()) == ([8], [4])
    assert np.allclose(np.linalg.norm(bundle.item_vectors, axis=1), 1.0, atol=1e-5)
    with torch.no_grad():
        raw = model.item_representations(torch.from_numpy(TABLE.text), torch.from_numpy(TABLE.slots))
    expected = torch.nn.functional.normalize(raw, dim=-1).numpy()
    assert np.allclose(bundle.item_vectors, expected[[0, 1, 3]], atol=1e-6)
    assert np.allclose(bundle.history_vectors, expected[[2]], atol=1e-6)
    assert not bundle.model.training
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), bundle.model.parameters(), strict=True))
    assert (bundle.event_types, bundle.eval, bundle.lineage) == (
        ("view", "buy"),
        {"ndcg@10": 0.25},
        {"parent": None},
    )


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    save(tmp_path, seed=0)
    second = save(tmp_path, seed=1)
    assert torch.equal(load(tmp_path).model.id_embedding.weight, second.id_embedding.weight)
    assert [path.name for path in tmp_path.iterdir()] == ["v0001"]


@pytest.mark.parametrize(
    "name", ["model.safetensors", "items.parquet", "config.json", "eval.json", "lineage.json"]
)
def test_an_altered_or_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    save(tmp_path)
    path = tmp_path / "v0001" / name
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=f"{name}.*altered"):
        load(tmp_path)
    path.unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        load(tmp_path)


def test_nothing_is_pickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path)
    for path in (tmp_path / "v0001").iterdir():
        assert not path.read_bytes().startswith((b"\x80", b"PK"))
    monkeypatch.setattr("pickle.loads", None)
    monkeypatch.setattr("pickle.Unpickler", None)
    load(tmp_path)


def test_another_format_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.bundle.FORMAT", 99)
    save(tmp_path)
    monkeypatch.undo()
    with pytest.raises(BundleError, match="format 99"):
        load(tmp_path)
    with pytest.raises(BundleError, match="no model bundle"):
        load_bundle(tmp_path / "v0002")


def test_files_are_plain_enough_to_read(tmp_path: Path) -> None:
    save(tmp_path)
    manifest = json.loads((tmp_path / "v0001" / "manifest.json").read_text())
    assert all(len(digest) == 64 for digest in manifest.values())
