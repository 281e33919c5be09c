"""A model with a text encoder of its own reads no other encoder's vectors; its own items have their own."""

from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from serving.config import ServingSettings
from serving.items import Learned
from serving.refresh import Refresher
from serving.snapshot import Snapshot
from streaming.catalog import CatalogReader, CatalogStore
from tests.serving.world import SHAPE, STREAMING, World
from training.bundle import load_bundle, save_bundle
from training.current_encoder import SavedEncoder
from training.items import ItemTable
from training.model import SequenceModel
from training.registry import Registry

OWN = "fingerprint-of-the-bundles-encoder"


def encode_all(data_dir: Path, fingerprint: str, vector: np.ndarray) -> None:
    """What the catalogue actor does once this encoder is due."""
    with closing(CatalogStore(data_dir / "catalog", map_size_gib=0.05)) as store:
        todo = store.missing(fingerprint, 100)
        store.put_vectors(fingerprint, todo, np.tile(vector, (len(todo), 1)))


def served(data_dir: Path) -> Snapshot:
    """What a replica that starts now serves."""
    published: list[Snapshot] = []
    refresher = Refresher(data_dir, STREAMING, ServingSettings(), published.append)
    try:
        assert refresher.refresh()
    finally:
        refresher.stop()
    return published[-1]


def test_new_items_wait_for_vectors_of_the_bundles_own_encoder(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.publish({"item_id": "old", "title": "old"})
    with closing(CatalogReader(tmp_path / "catalog")) as reader:
        known = reader.snapshot()
    folder = tmp_path / "tuned"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    torch.manual_seed(0)
    save_bundle(
        tmp_path / "models",
        "v0001",
        model=SequenceModel(SHAPE),
        table=ItemTable(known.hashes, np.array([-1]), known.vectors, known.ids),
        popularity=np.ones(1, np.float32),
        event_types=STREAMING.event_types,
        evaluation={},
        lineage={"created_at": 1.7e9},
        encoder=SavedEncoder(folder, OWN, "mean"),
    )
    Registry(tmp_path / "models").promote("v0001", "better")
    world.publish({"item_id": "new", "title": "new"})  # encoded by the encoder of before
    snapshot = served(tmp_path)
    at = dict(zip(snapshot.table.ids, range(2), strict=True))
    assert snapshot.scored[[at["old"], at["new"]]].tolist() == [True, False]
    own = np.eye(SHAPE.text_dim, dtype=np.float32)[0]
    encode_all(tmp_path, OWN, own)
    snapshot = served(tmp_path)
    assert snapshot.scored.all()
    bundle = load_bundle(tmp_path / "models" / "v0001")
    assert np.array_equal(snapshot.vectors[at["old"]], Learned.of(bundle).vectors[0])
    with torch.no_grad():
        raw = bundle.model.item_representations(torch.from_numpy(own[None]), torch.tensor([-1]))
    expected = torch.nn.functional.normalize(raw, dim=-1)[0]
    assert np.allclose(snapshot.vectors[at["new"]], expected, atol=1e-6)
