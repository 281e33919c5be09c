"""Everything one answer is made from, as one immutable value.

A request reads the engine's reference to it once and works with that to the end, so a swap between two
requests is one assignment, and no answer mixes two models.
"""

import importlib.util
import logging
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import normalize

from serving.approximate import ApproximateIndex
from serving.columns import ItemColumns
from serving.index import NOTHING, ExactIndex, Index, Wanted
from serving.items import Bools, ItemTable, Learned, find, merge
from serving.models import ModelState
from serving.user_encoder import EncoderInput, Floats, UserEncoder
from streaming.catalog import CatalogSnapshot
from streaming.hashing import UInt64
from streaming.rows import Int64
from training.model import SequenceModel

logger = logging.getLogger(__name__)

_FRESH = 0.1  # share of items behind a bundle's back from which its index is of no use


@dataclass(frozen=True)
class Snapshot:
    """N items, and the model over them if there is one."""

    table: ItemTable
    model: Learned | None
    catalog_version: int
    encoder: UserEncoder | None  # None: nothing but popularity can rank
    index: Index | None  # None: no item has a vector
    vectors: Floats  # (N, d) unit vectors of the model, or of the text encoder before there is a model
    scored: Bools  # (N,) has a vector
    tellable: Bools  # (N,) has a vector and a title: can be named as a reason
    popularity: Floats  # (N,) share of recent events
    popular_rows: Int64  # servable rows, most popular first, ties by item hash
    columns: ItemColumns  # fields of the items, for filters
    type_codes: Int64  # (T,) the model's code of each stream type

    @property
    def identity(self) -> tuple[str | None, int]:
        """Model and catalogue: the same in every replica that answers from the same."""
        return self.model.bundle.version if self.model else None, self.catalog_version

    def servable(self) -> int:
        """Count the items that can be recommended."""
        return len(self.popular_rows)

    def state(self, now_s: float) -> ModelState:
        """Say which model this is."""
        if self.model is None:
            return ModelState(version=None, age_s=None, kind="popular")
        age_s = round(max(0.0, now_s - self.model.created_s), 3)
        return ModelState(version=self.model.bundle.version, age_s=age_s, kind="trained")


def build(
    catalog: CatalogSnapshot,
    model: Learned | None,
    window_shares: tuple[UInt64, Floats],
    event_types: tuple[str, ...],
) -> Snapshot:
    """Put a snapshot together; the slow part of a swap, done beside the serving one.

    Args:
        catalog: what exists now.
        model: the promoted model, if any.
        window_shares: item hashes (ascending) and shares, used while there is no model.
        event_types: names of the stream's type codes.

    Raises:
        ValueError: the model gives vectors that are not finite.
    """
    table = merge(catalog, model)
    if model:
        vectors, scored = _model_vectors(table, catalog, model)
        popularity = _spread(model.popularity, table.learned_rows)
        encoder: UserEncoder | None = model.encoder
        scale = model.bundle.config.scale
        learned = list(model.bundle.event_types)
    else:
        vectors, scored = _text_vectors(table, catalog)
        popularity = _spread(window_shares[1], find(window_shares[0], table.hashes))
        encoder, scale, learned = None, 1.0, []
    # a type that came after the bundle was trained is read as the first one
    codes = np.array([learned.index(name) if name in learned else 0 for name in event_types], np.int64)
    servable = np.flatnonzero(table.available)
    by_share = servable[np.lexsort((servable, -popularity[servable]))]
    tellable = scored & np.fromiter(map(bool, table.titles), bool, len(table))
    index = _index(table, model, vectors, scored, scale) if scored.any() else None
    columns = ItemColumns(catalog, table)
    snapshot = Snapshot(
        table,
        model,
        catalog.version,
        encoder,
        index,
        vectors,
        scored,
        tellable,
        popularity,
        by_share,
        columns,
        codes,
    )
    _warm_up(snapshot)
    return snapshot


def _index(table: ItemTable, model: Learned | None, vectors: Floats, scored: Bools, scale: float) -> Index:
    """The bundle's index where it has one and most of what can be shown is in it; else all items are scored."""
    eligible = table.available & scored
    if model is not None and model.bundle.index is not None and importlib.util.find_spec("faiss") is not None:
        bundled = np.isin(table.hashes, model.bundle.item_hashes)
        if (eligible & ~bundled).sum() < _FRESH * len(table):
            return ApproximateIndex(model.bundle.index, vectors, eligible, table, bundled, scale)
    return ExactIndex(vectors, eligible, scale)


def _spread(values: Floats, rows: Int64) -> Floats:
    """Values of the rows given, 0 where the row is -1."""
    spread = np.zeros(len(rows), np.float32)
    spread[rows >= 0] = values[rows[rows >= 0]]
    return spread


def _model_vectors(table: ItemTable, catalog: CatalogSnapshot, model: Learned) -> tuple[Floats, Bools]:
    """Unit vectors: the bundle's own, and for items it has not seen, from their text."""
    bundle = model.bundle
    vectors = np.zeros((len(table), bundle.config.dim), np.float32)
    scored = table.learned_rows >= 0
    vectors[scored] = model.vectors[table.learned_rows[scored]]
    fresh = _encoded(table, catalog) & ~scored
    if fresh.any():
        text = catalog.vectors[table.catalog_rows[fresh]]
        if text.shape[1] == bundle.config.text_dim:
            vectors[fresh] = _text_representations(bundle.model, np.ascontiguousarray(text))
            scored |= fresh
        else:
            logger.warning(
                "model %s reads text vectors of width %d, the catalogue has %d: new items wait for a model "
                "trained on them",
                bundle.version,
                bundle.config.text_dim,
                text.shape[1],
            )
    return vectors, scored


def _text_representations(model: SequenceModel, text: Floats) -> Floats:
    """Represent items by their text alone: (N, D) text vectors give (N, d) unit vectors."""
    with torch.inference_mode():
        slots = torch.full((len(text),), -1, dtype=torch.int64)
        found = normalize(model.item_representations(torch.from_numpy(text), slots), dim=-1)
    return np.asarray(found.numpy(), np.float32)


def _text_vectors(table: ItemTable, catalog: CatalogSnapshot) -> tuple[Floats, Bools]:
    """Text vectors themselves, so that similar items can be shown before there is a model."""
    encoded = _encoded(table, catalog)
    vectors = np.zeros((len(table), catalog.vectors.shape[1]), np.float32)
    vectors[encoded] = catalog.vectors[table.catalog_rows[encoded]]
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.finfo(np.float32).tiny), encoded


def _encoded(table: ItemTable, catalog: CatalogSnapshot) -> Bools:
    encoded = table.catalog_rows >= 0
    encoded[encoded] = catalog.encoded[table.catalog_rows[encoded]]
    return encoded


def _warm_up(snapshot: Snapshot, rounds: int = 3) -> None:
    """Run some requests' worth of work, so that the first real one finds all allocated, and check it."""
    if snapshot.encoder is None or snapshot.index is None:
        return
    rows = np.flatnonzero(snapshot.scored)[: snapshot.encoder.length]
    steps = np.arange(len(rows), dtype=np.int64)
    for _ in range(rounds):
        history = EncoderInput(rows, steps * 60_000, np.zeros_like(rows))
        users = snapshot.encoder.encode([history], snapshot.vectors).users
        snapshot.index.search(users, [Wanted(10, NOTHING)])
    if not (np.isfinite(users).all() and np.isfinite(snapshot.vectors).all()):
        raise ValueError("the model gives vectors that are not finite numbers; it is not taken into service")
