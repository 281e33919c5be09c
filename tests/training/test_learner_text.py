"""The learner with a text encoder that it trains: one short story on a real Ray."""

import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from streaming.catalog import CatalogReader, CatalogStore, Item
from tests.training.synthetic import ITEM_IDS, settings, write_ring_window
from tests.training.test_learner import GATE, Running
from tests.training.tiny_text import DIM, tiny_bert
from training.bundle import Bundle, load_bundle
from training.config import DeepSpeedConfig
from training.encoder import TextEncoder, load_text_encoder

pytestmark = pytest.mark.slow  # minutes on two cores: `make test-slow`


def write_catalog(data_dir: Path, base: TextEncoder) -> None:
    items = [(name, Item(item_id=name, title=f"item w{n}")) for n, name in enumerate(ITEM_IDS)]
    with closing(CatalogStore(data_dir / "catalog", map_size_gib=0.1)) as store:
        store.apply(items, partition=0, upto_offset=len(items))
        todo = store.missing(base.fingerprint, 100)
        store.put_vectors(base.fingerprint, todo, base.encode([text for _, text in todo]))


@pytest.fixture(scope="module")
def story(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Running:
    """Two workers: a first model after pre-training on the texts, then poison between good windows."""
    folder = tmp_path_factory.mktemp("text")
    base = tiny_bert(folder / "base")
    write_catalog(folder, load_text_encoder(base))
    for index in range(3):
        write_ring_window(folder, index)
    chosen = settings(
        gate=GATE,
        text_encoder=base,
        finetune="full",
        num_workers=2,
        deepspeed=DeepSpeedConfig(stage=2),
        encoder_lr=0.002,
        mlm_epochs=1,
        epochs_per_window=8,
        window_lr=0.02,
        replay_ratio=0.0,
    )
    running = Running(folder, chosen)
    running.wait_for_verdict("v0001")
    for index, step in ((3, -7), (4, 1), (5, 1)):
        write_ring_window(folder, index, step=step)
        running.wait_for_verdict(f"v000{index - 1}")
    running.stop()
    return running


def bundle_of(story: Running, version: str) -> Bundle:
    return load_bundle(story.registry.path(version))


def test_each_bundle_brings_the_encoder_that_made_its_vectors(story: Running) -> None:
    seen = set()
    for info in story.registry.versions():
        bundle = bundle_of(story, info.version)
        assert bundle.encoder is not None
        encoder = load_text_encoder(str(bundle.encoder.folder))
        assert encoder.fingerprint == bundle.encoder.fingerprint
        assert bundle.lineage["text_encoder"]["finetune"] == "full"
        assert bundle.lineage["text_encoder"]["fingerprint"] == encoder.fingerprint
        texts = [f"item w{name.split('-')[1]}" for name in bundle.item_ids]
        with torch.no_grad():
            raw = bundle.model.item_representations(
                torch.from_numpy(encoder.encode(texts)), torch.from_numpy(bundle.item_slots)
            )
        expected = torch.nn.functional.normalize(raw, dim=-1).numpy()
        assert np.allclose(bundle.item_vectors, expected, atol=1e-4)
        seen.add(encoder.fingerprint)
    assert len(seen) == 4, "every round trains the encoder"


def test_a_rejected_candidates_encoder_goes_back(story: Running) -> None:
    assert story.registry.verdict("v0003") == "rejected"  # it was trained on the poison
    said = json.loads((story.registry.path("v0003") / "eval.json").read_text())
    served = said["incumbent"]["version"]
    assert story.training("v0004")["from"] == served
    incumbent = bundle_of(story, served).encoder
    assert incumbent is not None
    assert bundle_of(story, "v0004").lineage["text_encoder"]["loaded"] == incumbent.fingerprint
    base = load_text_encoder(str(story.data_dir / "base")).fingerprint
    assert bundle_of(story, "v0001").lineage["text_encoder"]["loaded"] == base


def test_the_catalogue_is_only_read(story: Running) -> None:
    with closing(CatalogReader(story.data_dir / "catalog")) as reader:
        snapshot = reader.snapshot()
    assert snapshot.of_encoder(load_text_encoder(str(story.data_dir / "base")).fingerprint).encoded.all()
    assert snapshot.vectors.shape == (len(ITEM_IDS), DIM)


def test_frozen_from_now_on_keeps_the_encoder_that_is_served(story: Running) -> None:
    served = story.registry.current()
    assert served is not None
    write_ring_window(story.data_dir, 6)
    frozen = settings(gate=GATE, text_encoder=str(story.data_dir / "base"))
    running = Running(story.data_dir, frozen)
    running.wait_for_verdict("v0005")
    running.stop()
    before, after = bundle_of(story, served).encoder, bundle_of(story, "v0005").encoder
    assert before is not None
    assert after is not None
    assert after.fingerprint == before.fingerprint
    assert running.training("v0005")["from"] == served
