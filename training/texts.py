"""The learner's side of a text encoder that is trained: what it starts from, its vectors, what a bundle gets of it.

Vectors of texts are kept while the weights stay, and those that the catalogue holds under the same fingerprint are
taken from there, item by item: a changed text's is held back there, and another item of the same text keeps its own.
Texts are cleaned here as there. Weights that have changed are another encoder, whose vectors nothing holds back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from streaming.catalog import CatalogSnapshot
from training import engine as engines
from training.config import TrainingSettings
from training.current_encoder import SavedEncoder
from training.encoder import load_text_encoder
from training.items import ItemTable
from training.live import encode_all
from training.mlm import pretrain
from training.text_tower import TextTower, load_tower, table_texts


class TextSide:
    """One worker's; the methods that take an engine are called by all ranks in step, with the same catalogue.

    Args:
        settings: with ``finetune`` other than ``"frozen"``.
        rank, world: this worker and their number.
    """

    def __init__(self, settings: TrainingSettings, rank: int = 0, world: int = 1) -> None:
        self._settings, self._rank, self._world = settings, rank, world
        self._base: SavedEncoder | None = None
        self._fingerprint: str | None = None  # of the engine's weights, where they are as loaded
        self._known: dict[str, NDArray[np.float32]] = {}  # text → vector with the engine's weights
        self._catalog: CatalogSnapshot | None = None
        self._texts: list[str] = []  # the catalogue's, cleaned
        self.vectors: NDArray[np.float32] = np.zeros((0, 0), np.float32)
        self.loaded: str | None = None  # fingerprint of what the engine's tower was last loaded from

    def start_from(self, encoder: SavedEncoder | None) -> None:
        """Build the next towers from a bundle's encoder; None = from the settings'."""
        self._base = encoder

    def tower(self, weights: dict[str, torch.Tensor] | None = None) -> TextTower:
        """A tower as loaded, or with the weights of the engine in hand."""
        if self._base is None:
            tower = load_tower(self._settings.text_encoder, self._settings)
        else:
            tower = load_tower(str(self._base.folder), self._settings, self._base.pooling)
        if weights is None:
            self.forget()
            self._fingerprint = self.loaded = tower.fingerprint
        else:
            tower.load_state_dict(weights)
        return tower

    def adapted(self, catalog: CatalogSnapshot) -> dict[str, torch.Tensor]:
        """Weights after masked-language pre-training on the catalogue; to be called on one rank."""
        tower = self.tower()
        pretrain(tower, self._cleaned(catalog.texts), self._settings)
        return tower.state_dict()

    def forget(self) -> None:
        """The engine's weights have changed: no vector holds."""
        self._known, self._fingerprint = {}, None

    def encode(self, engine: Any, catalog: CatalogSnapshot) -> None:
        """Make ``vectors`` (M, D) those of the catalogue's texts with the engine's weights."""
        texts = self._cleaned(catalog.texts)
        stored = catalog.of_encoder(self._fingerprint) if self._fingerprint is not None else None
        there = stored.encoded if stored is not None else np.zeros(len(catalog), bool)
        wanted = {text for text, has in zip(texts, there, strict=True) if text.strip() and not has}
        missing = sorted(wanted - self._known.keys())
        if missing:
            encoded = encode_all(engine, missing, self._rank, self._world)
            self._known |= dict(zip(missing, encoded, strict=True))
        tower = engines.tower_of(engine)
        nothing = np.zeros(tower.dim if tower else 0, np.float32)
        found = [self._known.get(text, nothing) for text in texts]
        self.vectors = np.stack(found) if found else np.zeros((0, len(nothing)), np.float32)
        if stored is not None and there.any():
            self.vectors[there] = stored.vectors[there]
        self._catalog, self._texts = catalog, texts

    def of(self, table: ItemTable) -> list[str]:
        """The cleaned text of every row of ``table``, "" for none, by the catalogue of the last :meth:`encode`."""
        if self._catalog is None:
            raise AssertionError("encode() comes first")
        return table_texts(table, self._catalog.hashes, self._texts)

    def save(self, weights: dict[str, torch.Tensor], folder: Path) -> SavedEncoder:
        """Write the encoder with these weights of the engine's tower; to be called on one rank."""
        tower = self.tower(weights)
        tower.save(folder)
        return SavedEncoder(folder, load_text_encoder(str(folder), tower.pooling).fingerprint, tower.pooling)

    def seen_by(
        self, encoder: SavedEncoder | None, table: ItemTable, catalog: CatalogSnapshot
    ) -> NDArray[np.float32]:
        """(N, D) text vectors of ``table`` as another bundle's encoder gives them; None = the settings' encoder."""
        name = str(encoder.folder) if encoder else self._settings.text_encoder
        loaded = load_text_encoder(name, encoder.pooling if encoder else self._settings.encoder_pooling)
        held = catalog.of_encoder(loaded.fingerprint)
        vectors = np.zeros((len(catalog), loaded.dim), np.float32)
        if held.encoded.any():  # else the catalogue's may be of another width
            vectors[held.encoded] = held.vectors[held.encoded]
        missing = np.flatnonzero(~held.encoded)
        vectors[missing] = loaded.encode(self._cleaned([catalog.texts[row] for row in missing]))
        text = np.zeros((len(table), loaded.dim), np.float32)
        text[table.rows_of(catalog.hashes)] = vectors
        return text

    def _cleaned(self, texts: list[str]) -> list[str]:
        guard = self._settings.text_guard.guard
        return guard.clean(texts) if guard is not None else texts
