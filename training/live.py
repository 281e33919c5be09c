"""Which texts a step encodes anew, and when all of them are.

The choice is made on the *global* batch, so that it is the same on every worker and the loss does not depend on how
many there are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray

from training.data import Chunks
from training.engine import gathered, tower_of
from training.errors import LearnerError
from training.text_tower import LiveTexts, TextTower, live_texts

if TYPE_CHECKING:
    from training.fit import Pool
    from training.loop import Worker


class Live:
    """The live texts of a round.

    Args:
        worker: engine with a tower, rank, world, settings, progress. pool: the round's sequences and rows.
        texts: of every row of the item table; "" for none.

    Raises:
        LearnerError: the engine has no tower.
    """

    def __init__(self, worker: Worker, pool: Pool, texts: list[str]) -> None:
        tower = tower_of(worker.engine)
        if tower is None:
            raise LearnerError("expected an engine with a text tower; build it with tower=load_tower(...)")
        self._worker, self._pool, self._texts, self._tower = worker, pool, texts, tower
        self._has_text = np.array([bool(text.strip()) for text in texts], dtype=bool)
        settings = worker.settings
        self._every = settings.finetune_refresh_epochs * max(pool.steps_per_epoch(settings), 1)

    def due(self, steps: int) -> bool:
        """Whether all texts are to be encoded anew after ``steps`` steps of the round."""
        return bool(self._every and steps and steps % self._every == 0)

    def refreshed(self) -> NDArray[np.float32]:
        """(N, D) vectors of all texts with the weights of now; a collective."""
        return encode_all(self._worker.engine, self._texts, self._worker.rank, self._worker.world)

    def pick(self, chunks: Chunks) -> LiveTexts:
        """The items of a global batch that have a text, a sample of them beyond ``finetune_texts_per_step``."""
        settings, rows = self._worker.settings, self._pool.rows
        spans = [rows[a : b + 1] for a, b in zip(chunks.start, chunks.stop, strict=True)]
        there = np.unique(np.concatenate(spans)) if spans else np.zeros(0, dtype=np.int64)
        there = there[self._has_text[there]]
        if len(there) > settings.finetune_texts_per_step:
            rng = np.random.default_rng([settings.seed, self._worker.progress.step])
            there = np.sort(rng.choice(there, settings.finetune_texts_per_step, replace=False))
        return live_texts(self._tower, self._texts, there, self._worker.rank, self._worker.world)


def encode_all(engine: Any, texts: list[str], rank: int = 0, world: int = 1) -> NDArray[np.float32]:
    """(N, D) vectors of ``texts`` with the engine's tower, each worker encoding its share; a collective."""
    tower = tower_of(engine)
    if tower is None:
        raise LearnerError("expected an engine with a text tower")
    with gathered(engine, tower):
        mine = tower.encode(texts[rank::world])
    if world == 1:
        return mine
    shares: list[Any] = [None] * world
    dist.all_gather_object(shares, mine)
    return _interleave(shares, tower, len(texts))


def _interleave(shares: list[NDArray[np.float32]], tower: TextTower, size: int) -> NDArray[np.float32]:
    joined = np.zeros((size, tower.dim), dtype=np.float32)
    for rank, share in enumerate(shares):
        joined[rank :: len(shares)] = share
    return joined
