"""A small world on disk, made by the real writers: catalogue, user state, windows, model bundles.

What is to change under a living recommender is written by another process, as in production.
"""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from serving.config import ServingSettings
from serving.engine import Recommender
from streaming.catalog import CatalogReader
from streaming.hashing import hash_one
from tests.serving.writers import MINUTE, STREAMING, TEXT_DIM, Writers, event
from training.bundle import save_bundle
from training.config import ModelConfig
from training.items import ItemSlots, build_table
from training.model import SequenceModel
from training.registry import Registry

__all__ = ["MINUTE", "STREAMING", "World", "event"]

SHAPE = ModelConfig(dim=16, blocks=1, length=8, text_dim=TEXT_DIM, id_capacity=64, num_types=3)


class World(Writers):
    """Everything under one data folder."""

    def train(
        self,
        version: str,
        seed: int = 0,
        known: tuple[str, ...] = (),
        promote: bool = True,
        repeats: str = "excluded",
        index_items: int | None = None,
    ) -> Path:
        """Write a bundle with random weights over the catalogue of now; `known` items were in events."""
        torch.manual_seed(seed)
        shape = SHAPE.model_copy(update={"repeats": repeats})
        slots = ItemSlots(SHAPE.id_capacity)
        seen = np.array([hash_one(item) for item in known], np.uint64)
        slots.touch(seen, 0)
        with closing(CatalogReader(self.data_dir / "catalog")) as reader:
            now = reader.snapshot()
        table = build_table(slots, now.hashes, now.ids, now.vectors, seen, SHAPE.text_dim)
        popularity = np.linspace(1.0, 2.0, len(table), dtype=np.float32)
        path = save_bundle(
            self.data_dir / "models",
            version,
            model=SequenceModel(shape),
            table=table,
            popularity=popularity / popularity.sum(),
            event_types=STREAMING.event_types,
            evaluation={"ndcg@10": 0.25},
            lineage={"windows": ["w1"], "parent": None, "created_at": 1_700_000_000.0},
            index_items=index_items,
        )
        if promote:
            Registry(self.data_dir / "models").promote(version, "better")
        return path

    def recommender(self, **settings: Any) -> Recommender:
        """Open a recommender; `start` it for the polling thread."""
        return Recommender(self.data_dir, STREAMING, ServingSettings(refresh_s=0.02, **settings))

    def elsewhere(self, method: str, *arguments: Any, **named: Any) -> None:
        """Call `publish` or `happen` in another process."""
        call = json.dumps([str(self.data_dir), method, arguments, named])
        subprocess.run(
            [sys.executable, "-m", "tests.serving.writers", call],
            check=True,
            timeout=60,
            cwd=Path(__file__).parents[2],
        )
