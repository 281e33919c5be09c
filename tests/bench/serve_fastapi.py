"""What Headrace is held against: FastAPI and uvicorn in one process, the same model in eager PyTorch.

Written as one would without Headrace's serving: one route, typed answers, the state from the same store, the forward
pass, a matrix product, `topk`. It gives the same items in the same order (a test says so), but no reasons, no limits,
no metrics, and no model is ever swapped. The handler computes in the event loop: in a thread pool (`def` instead of
`async def`) it answered a tenth to a quarter fewer requests/s at 16 connections.
"""

from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from streaming.catalog import CatalogReader
from streaming.reader import StateReader
from tests.bench.serve_world import VERSION, world_settings
from training.bundle import load_bundle


class Item(BaseModel):
    """One recommended item."""

    item_id: str
    title: str
    score: float


class Model(BaseModel):
    """Which model answered."""

    version: str


class Answer(BaseModel):
    """A user's list."""

    user_id: str
    items: list[Item]
    model: Model


def build(world: Path) -> FastAPI:
    """The application on a world."""
    torch.set_num_threads(1)
    reader = StateReader(world / "state", world_settings(world, 8000).streaming)
    bundle = load_bundle(world / "models" / VERSION)
    with closing(CatalogReader(world / "catalog")) as catalogue:
        now = catalogue.snapshot()
    titles = dict(zip(now.ids, now.titles, strict=True))
    items = [Item(item_id=name, title=titles[name], score=0) for name in bundle.item_ids]
    model, hashes = bundle.model.eval(), bundle.item_hashes
    length, scale = model.config.length, model.config.scale
    vectors = torch.nn.functional.normalize(torch.from_numpy(bundle.item_vectors), dim=-1)
    app = FastAPI()

    @app.get("/v1/recommendations/{user_id}")
    async def recommend(user_id: str, k: int = 10) -> Answer:
        row = reader.read([user_id])[0]
        if not row["total"]:
            raise HTTPException(404, f"no such user: {user_id}")
        events = row["events"][-int(row["count"]) :]
        seen = torch.from_numpy(np.searchsorted(hashes, events["item"]))
        newest = events[-length:]
        times = torch.from_numpy(newest["time"].copy())
        types = torch.from_numpy(newest["type"].astype(np.int64))
        with torch.inference_mode():
            mask = torch.ones(1, len(times), dtype=torch.bool)
            users = model(vectors[seen[-length:]][None], types[None], times[None], mask)[0, -1]
            scores = vectors @ torch.nn.functional.normalize(users, dim=-1) * scale
            scores[seen] = -torch.inf
            best, rows = scores.topk(k)
        found = [
            items[row].model_copy(update={"score": round(score, 6)})
            for row, score in zip(rows.tolist(), best.tolist(), strict=True)
        ]
        return Answer(user_id=user_id, items=found, model=Model(version=VERSION))

    return app
