"""A tuned encoder travels in the bundle, and the catalogue and the replica follow it: exactly when weights change."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from streaming.catalog import CatalogReader, CatalogStore, Item
from tests.training.tiny_text import DIM, tiny_bert
from training.bundle import load_bundle, save_bundle
from training.config import ModelConfig
from training.current_encoder import CurrentEncoder, SavedEncoder
from training.encoder import load_text_encoder
from training.errors import BundleError
from training.items import ItemTable
from training.model import SequenceModel
from training.registry import Registry

CONFIG = ModelConfig(dim=16, blocks=1, heads=2, length=6, text_dim=DIM, id_capacity=5, num_types=2)


def save(models: Path, version: str, encoder: SavedEncoder | None) -> None:
    torch.manual_seed(0)
    table = ItemTable(np.array([3], np.uint64), np.array([0]), np.zeros((1, DIM), np.float32), ["a"])
    save_bundle(
        models,
        version,
        model=SequenceModel(CONFIG),
        table=table,
        popularity=np.ones(1, np.float32),
        event_types=("view",),
        evaluation={},
        lineage={},
        encoder=encoder,
    )


def tuned(folder: Path, seed: int) -> SavedEncoder:
    return SavedEncoder(folder, load_text_encoder(tiny_bert(folder, seed)).fingerprint, "mean")


def test_the_encoder_travels_in_the_bundle(tmp_path: Path) -> None:
    encoder = tuned(tmp_path / "tuned", 1)
    save(tmp_path / "models", "v0001", encoder)
    bundle = load_bundle(tmp_path / "models" / "v0001")
    assert bundle.encoder is not None
    assert (bundle.encoder.fingerprint, bundle.encoder.pooling) == (encoder.fingerprint, "mean")
    again = load_text_encoder(str(bundle.encoder.folder))
    assert again.fingerprint == encoder.fingerprint
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    assert "encoder/model.safetensors" in manifest
    assert "encoder/tokenizer.json" in manifest
    save(tmp_path / "models", "v0002", None)
    assert load_bundle(tmp_path / "models" / "v0002").encoder is None


def test_an_altered_missing_or_added_encoder_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "v0001", tuned(tmp_path / "tuned", 1))
    weights = tmp_path / "v0001" / "encoder" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(BundleError, match=r"encoder/model.safetensors.*altered"):
        load_bundle(tmp_path / "v0001")
    weights.unlink()
    with pytest.raises(BundleError, match=r"lacks encoder/model.safetensors"):
        load_bundle(tmp_path / "v0001")
    weights.write_bytes(good)
    load_bundle(tmp_path / "v0001")
    (weights.parent / "added.json").write_text("{}")
    with pytest.raises(BundleError, match=r"encoder/added.json.*altered"):
        load_bundle(tmp_path / "v0001")


def test_the_encoder_due_follows_what_is_promoted(tmp_path: Path) -> None:
    base, registry = tiny_bert(tmp_path / "base"), Registry(tmp_path / "models")
    due = CurrentEncoder(registry.models_dir, base)
    first = due()
    assert first.fingerprint == load_text_encoder(base).fingerprint
    assert due() is first
    one, two = tuned(tmp_path / "one", 1), tuned(tmp_path / "two", 2)
    save(registry.models_dir, "v0001", None)
    registry.promote("v0001", "better")
    assert due() is first, "a bundle without an encoder stands on the settings'"
    save(registry.models_dir, "v0002", one)
    registry.reject("v0002", "worse")
    assert due() is first, "a rejected candidate moves nothing"
    save(registry.models_dir, "v0003", two)
    registry.promote("v0003", "better")
    assert due().fingerprint == two.fingerprint
    assert due() is due()
    (registry.path("v0002") / "encoder" / "model.safetensors").unlink()
    registry.promote("v0002", "by hand")
    assert due().fingerprint == two.fingerprint, "what cannot be loaded changes nothing"
    assert CurrentEncoder(registry.models_dir, base)().fingerprint == first.fingerprint
    registry.promote("v0001", "back")
    assert due().fingerprint == first.fingerprint


def test_vectors_are_made_anew_exactly_when_weights_or_text_change(tmp_path: Path) -> None:
    store, reader = CatalogStore(tmp_path / "catalog", 0.1), CatalogReader(tmp_path / "catalog")
    base, other = (
        load_text_encoder(tiny_bert(tmp_path / "0")),
        load_text_encoder(tiny_bert(tmp_path / "1", 1)),
    )
    same = load_text_encoder(tiny_bert(tmp_path / "again"))

    def missing(fingerprint: str) -> list[str]:
        return sorted(text for _, text in store.missing(fingerprint, 10))

    def encode(encoder: object, limit: int = 10) -> None:
        todo = store.missing(encoder.fingerprint, limit)  # type: ignore[attr-defined]
        store.put_vectors(encoder.fingerprint, todo, encoder.encode([t for _, t in todo]))  # type: ignore[attr-defined]

    with closing(store), closing(reader):
        store.apply([(f"i{n}", Item(item_id=f"i{n}", title=f"w{n}")) for n in range(3)], 0, 3)
        encode(base)
        assert missing(base.fingerprint) == missing(same.fingerprint) == []
        assert missing(other.fingerprint) == ["w0", "w1", "w2"]
        store.apply([("i1", Item(item_id="i1", title="w9"))], 0, 4)
        assert missing(base.fingerprint) == ["w9"]
        stale = reader.snapshot()
        assert stale.encoded.all()
        fresh = dict(zip(stale.ids, stale.of_encoder(base.fingerprint).encoded, strict=True))
        assert fresh == {"i0": True, "i1": False, "i2": True}
        encode(other, limit=2)
        half = reader.snapshot().of_encoder(other.fingerprint)
        assert half.encoded.sum() == 2
        assert np.allclose(
            half.vectors[half.encoded],
            other.encode([t for t, e in zip(half.texts, half.encoded, strict=True) if e]),
            atol=1e-6,
        )
        assert not half.vectors[~half.encoded].any()
        encode(other)
        assert reader.snapshot().of_encoder(other.fingerprint).encoded.all()
        assert not reader.snapshot().of_encoder(base.fingerprint).encoded.any()
