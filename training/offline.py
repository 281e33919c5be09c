"""Training without the learner: one process, no windows on disk, the same engine and the same steps.

For evaluation and benchmarks. What `training.fit` does to a round is done here too, batch for batch; only the
clock (no time limit) and the judge (a validation function instead of the gate) differ.
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from training import engine as engines
from training.config import TrainingSettings
from training.data import Sequences
from training.errors import LearnerError
from training.fit import Stepper, batches, learning_rate, make_pool
from training.items import ItemTable
from training.model import SequenceModel
from training.text_tower import encode_table, load_tower


@dataclass
class _Counter:
    step: int = 0


@dataclass
class Fitted:
    """What a fit found.

    Attributes:
        weights: of the best epoch. table: the items, with the vectors of its text encoder.
        best: its validation figure. epoch: which it was, from 1. curve: (epoch, figure).
        seconds: of CPU time spent in steps, over all threads. steps: taken.
    """

    weights: dict[str, Tensor]
    table: ItemTable
    best: float
    epoch: int
    curve: list[tuple[int, float]] = field(default_factory=list)
    seconds: float = 0.0
    steps: int = 0


class Trainer:
    """Steps an engine of this process; shaped like `training.loop.Worker` where `training.fit.Stepper` looks.

    Args:
        settings: all that training needs; `model.text_dim` and `model.id_capacity` fit the table.
        weights: of a `SequenceModel` to start from; None = initialised from the seed.
        texts: of the rows of the item table; needed where `finetune` trains the text encoder too.

    Raises:
        EncoderError: the text encoder cannot be loaded, or not be trained in the way that is set.
        LearnerError: it is to be trained, and its texts are missing or its vectors of another width.
    """

    rank, world = 0, 1

    def __init__(
        self,
        settings: TrainingSettings,
        weights: dict[str, Tensor] | None = None,
        texts: list[str] | None = None,
    ) -> None:
        self.settings, self.progress = settings, _Counter()
        self.device = engines.device_of(settings)
        if not dist.is_initialized():
            backend = "nccl" if self.device.type == "cuda" else "gloo"
            os.environ |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}  # DeepSpeed reads them
            dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
        engines.prepare(self.device)
        tuned = settings.finetune != "frozen"
        if tuned and texts is None:
            raise LearnerError(f"training.finetune = {settings.finetune!r} needs the texts of the items")
        self.tower = load_tower(settings.text_encoder, settings) if tuned else None
        self._texts = texts if tuned else None
        self.engine: Any = engines.build_engine(settings.model, settings, self.device, weights, self.tower)

    @property
    def model(self) -> SequenceModel:
        """The weights as they are now."""
        model: SequenceModel = self.engine.module.model
        return model

    def fit(
        self,
        new: Sequences,
        table: ItemTable,
        *,
        epochs: int,
        lr: float,
        old: Sequences | None = None,
        number: int = 1,
        validate: Callable[[SequenceModel, ItemTable], float] | None = None,
        every: int = 1,
        patience: int = 5,
        tell: Callable[[str], None] | None = None,
        keep: Path | None = None,
    ) -> Fitted:
        """Train; with a validation function the best epoch's weights are returned and training stops early.

        Args:
            new, old: sequences to learn from, and older ones to replay. table: their items.
            epochs: passes over `new` at most. lr: peak rate, linear warm-up, then cosine to the last epoch.
            number: of the round; the shuffling follows from it and the seed.
            validate: of the model and the items as they are then; higher is better.
            every: epochs between validations. patience: validations without a gain.
            tell: told of every validation. keep: file in which an unfinished fit is kept and taken up again.
        """
        pool = make_pool(new, old, table)
        per_epoch = pool.steps_per_epoch(self.settings)
        found = Fitted({}, table, -math.inf, 0)
        first = self._resume(keep, found)
        torch.manual_seed(self.settings.seed + 7919 * number + first)
        table = self._encoded(table)
        stepper = Stepper(self, pool, table, number, self._texts)  # type: ignore[arg-type]
        epoch_of = batches(pool, self.settings, number, epochs)
        for epoch in range(epochs):
            began = time.process_time()
            for place in range(per_epoch):
                chunks = next(epoch_of, None)
                if chunks is None:
                    break
                if epoch >= first:
                    step = epoch * per_epoch + place
                    total = epochs * per_epoch
                    rate = learning_rate(lr, step, self.settings.warmup_steps, total, step / total)
                    stepper.step(chunks, rate)
                    found.steps += 1
            if epoch < first:
                continue
            found.seconds += time.process_time() - began
            if validate is not None and (epoch + 1) % every == 0:
                table = self._encoded(table)
                self._judge(epoch + 1, table, validate, found, stepper, tell)
                stepper = Stepper(self, pool, table, number, self._texts)  # type: ignore[arg-type]
            self._keep(keep, epoch + 1, found)
            if validate is not None and epoch + 1 - found.epoch >= patience * every:
                break
        if not found.weights:
            found.weights, found.epoch = copy.deepcopy(self.model.state_dict()), epochs
            found.table = self._encoded(table)
        if keep is not None:
            keep.unlink(missing_ok=True)
        return found

    def forget_ids(self, slots: NDArray[np.int64]) -> None:
        """Set rows of the id table to zero: their items live by their text until they are learned."""
        with torch.no_grad():
            self.model.id_embedding.weight[torch.from_numpy(slots)] = 0.0

    def _encoded(self, table: ItemTable) -> ItemTable:
        """The items with the vectors of the text encoder as it is now."""
        if self.tower is None or self._texts is None:
            return table
        return encode_table(self.tower, table, self._texts)

    def _judge(
        self,
        epoch: int,
        table: ItemTable,
        validate: Callable[[SequenceModel, ItemTable], float],
        found: Fitted,
        stepper: Stepper,
        tell: Callable[[str], None] | None,
    ) -> None:
        figure = validate(self.model.eval(), table)
        found.curve.append((epoch, figure))
        if figure > found.best:
            found.best, found.epoch = figure, epoch
            found.weights, found.table = copy.deepcopy(self.model.state_dict()), table
        if tell is not None:
            tell(
                f"epoch {epoch}: loss {stepper.figures().get('loss', math.nan):.4f}, validation {figure:.4f} "
                f"(best {found.best:.4f} at {found.epoch}), {found.seconds:.0f} s"
            )

    def _keep(self, keep: Path | None, epoch: int, found: Fitted) -> None:
        if keep is None:
            return
        keep.parent.mkdir(parents=True, exist_ok=True)
        state = {
            "epoch": epoch,
            "found": {name: value for name, value in vars(found).items() if name != "table"},
            "text": torch.from_numpy(found.table.text) if self.tower is not None else None,
            "tower": self.tower.state_dict() if self.tower is not None else None,
            "step": self.progress.step,
            "weights": self.model.state_dict(),
            "optimizer": self.engine.optimizer.state_dict(),
        }
        temporary = keep.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(keep)

    def _resume(self, keep: Path | None, found: Fitted) -> int:
        """Take up an unfinished fit; returns the epochs it had done."""
        if keep is None or not keep.is_file():
            return 0
        state = torch.load(keep, weights_only=True)
        self.model.load_state_dict(state["weights"])
        self.engine.optimizer.load_state_dict(state["optimizer"])
        self.progress.step = state["step"]
        vars(found).update(state["found"])
        if self.tower is not None:
            self.tower.load_state_dict(state["tower"])
            found.table = replace(found.table, text=state["text"].numpy())
        return int(state["epoch"])
