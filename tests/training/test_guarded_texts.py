"""The learner's own encoding of texts is guarded as the catalogue's is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streaming.catalog import CatalogReader, CatalogSnapshot, CatalogStore, Item
from streaming.cataloguer import encode_batch
from tests.training.synthetic import settings
from tests.training.tiny_text import DIM, tiny_bert
from training.config import TextGuardConfig, TrainingSettings
from training.encoder import load_text_encoder
from training.items import ItemTable
from training.text_guard import TextGuard, degrees
from training.texts import TextSide

LOUD = "item w1 item w1 item w1 item w1 item w1"  # said more than three times
GUARD = TextGuard(most_degrees=1)


def side_of(base: str, **changes: Any) -> tuple[TextSide, Any]:
    """A worker's side and an engine that holds its tower as loaded."""
    guard = TextGuardConfig(most_degrees=GUARD.most_degrees, **changes)
    chosen: TrainingSettings = settings(text_encoder=base, finetune="full", text_guard=guard)
    side = TextSide(chosen)
    engine = SimpleNamespace(
        module=SimpleNamespace(tower=side.tower()), zero_optimization_stage=lambda: 0, train=lambda *_: None
    )
    return side, engine


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_bert(tmp_path_factory.mktemp("base"))


def catalog_of(folder: Path, **titles: str) -> tuple[CatalogStore, CatalogReader]:
    store, reader = CatalogStore(folder, 0.1), CatalogReader(folder)
    write(store, **titles)
    return store, reader


def write(store: CatalogStore, **titles: str) -> None:
    store.apply([(name, Item(item_id=name, title=title)) for name, title in titles.items()], 0, 1)


def row(snapshot: CatalogSnapshot, name: str) -> int:
    return snapshot.ids.index(name)


def test_texts_are_cleaned_where_the_guard_is_on(base: str, tmp_path: Path) -> None:
    _, reader = catalog_of(tmp_path, a=LOUD)
    snapshot, encoder = reader.snapshot(), load_text_encoder(base)
    table = ItemTable(snapshot.hashes, np.array([-1]), np.zeros((1, DIM), np.float32), snapshot.ids)
    for on, text in ((True, GUARD.clean([LOUD])[0]), (False, LOUD)):
        side, engine = side_of(base, enabled=on)
        side.encode(engine, snapshot)
        assert np.allclose(side.vectors, encoder.encode([text]), atol=1e-6)
        assert side.of(table) == [text]
        assert np.allclose(side.seen_by(None, table, snapshot), encoder.encode([text]), atol=1e-6)


def test_a_vector_that_is_held_back_is_its_items_and_not_its_texts(base: str, tmp_path: Path) -> None:
    store, reader = catalog_of(tmp_path, pusher="item w1 w2", popular="item w9")
    encoder = load_text_encoder(base)
    encode_batch(store, encoder, GUARD)
    write(store, pusher="item w9")
    encode_batch(store, encoder, GUARD)
    write(store, late="item w9")  # not encoded yet
    snapshot = reader.snapshot()
    side, engine = side_of(base)
    side.encode(engine, snapshot)
    own, vectors = encoder.encode(["item w9"])[0], side.vectors
    assert np.allclose(vectors[row(snapshot, "popular")], own, atol=1e-6)
    assert np.allclose(vectors[row(snapshot, "late")], own, atol=1e-6)
    first = encoder.encode(["item w1 w2"])
    assert degrees(first, vectors[[row(snapshot, "pusher")]])[0] == pytest.approx(1, abs=0.05)
    side.forget()  # other weights
    side.encode(engine, snapshot)
    assert np.allclose(side.vectors, own, atol=1e-6)


def test_the_settings_make_the_guard() -> None:
    assert TextGuardConfig().guard == TextGuard()
    assert TextGuardConfig(most_degrees=5, most_words=6, most_repeats=7).guard == TextGuard(5, 6, 7)
    assert TextGuardConfig(enabled=False).guard is None
