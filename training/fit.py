"""One round of training: batches of new and replayed chunks through the engine, within a time limit.

Everything random is a function of (seed, round, epoch or step), and every worker cuts the same global batches
and takes its own rows of them, so the loss does not depend on the number of workers (dropout inside the encoder
is the exception: it is drawn per worker). Workers agree every few steps on how far along they are: the learning
rate follows steps or elapsed time, whichever is further, so it has always come down when the time is up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from training.config import TrainingSettings
from training.data import Batch, Chunks, Sequences, concat, cut, make_batch
from training.engine import set_lr
from training.items import ItemTable
from training.live import Live
from training.losses import Negatives, draw_negatives
from training.plan import Plan
from training.telemetry import StepMeter

if TYPE_CHECKING:
    from training.loop import Worker

SYNC_STEPS = 8
_FLOOR = 0.02  # the cosine ends at this share of the peak rate
_WARMUP_SHARE = 0.1  # of a round's steps is spent rising at most: short rounds must reach their peak, too


def learning_rate(peak: float, step: int, warmup: int, total: int, done: float) -> float:
    """Linear warm-up over ``warmup`` steps, at most a tenth of ``total``, then a cosine over ``done`` in [0, 1]."""
    rise = min(1.0, (step + 1) / max(min(warmup, _WARMUP_SHARE * total), 1))
    fall = _FLOOR + (1 - _FLOOR) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))
    return peak * rise * fall


@dataclass(frozen=True)
class Pool:
    """What a round draws from: all its sequences, their item-table rows, and how many rows are new."""

    sequences: Sequences
    rows: NDArray[np.int64]
    new_rows: int

    def steps_per_epoch(self, settings: TrainingSettings) -> int:
        """Optimiser steps of one pass; passes whose cuts are moved may take a few more or less."""
        chunks = self.epoch(settings, np.random.default_rng(0), shift=False)
        return math.ceil(len(chunks) / settings.batch_size)

    def epoch(self, settings: TrainingSettings, rng: np.random.Generator, shift: bool) -> Chunks:
        """Every new chunk and a fresh sample of the replayed ones, shuffled."""
        stride = settings.model.length - settings.overlap
        phase = int(rng.integers(stride)) if shift else 0
        chunks = cut(self.sequences, settings.model.length, settings.overlap, phase)
        new = np.flatnonzero(chunks.row < self.new_rows)
        old = np.flatnonzero(chunks.row >= self.new_rows)
        wanted = min(len(old), round(settings.replay_ratio * len(new)))
        picked = np.concatenate([new, rng.choice(old, wanted, replace=False)]) if wanted else new
        return chunks.take(rng.permutation(picked))


def make_pool(new: Sequences, old: Sequences | None, table: ItemTable) -> Pool:
    """Put new and replayed windows together."""
    sequences = new if old is None else concat([new, old])
    return Pool(sequences, table.rows_of(sequences.items), len(new))


def global_weight(chunks: Chunks, summed: NDArray[np.float64]) -> float:
    """What the targets of a global batch count together, given `Sequences.cumulative_weights` (E + 1,)."""
    return float((summed[chunks.stop + 1] - summed[chunks.first_target]).sum())


def local_batch(pool: Pool, chunks: Chunks, rank: int, world: int) -> Batch:
    """This worker's rows of a global batch; a worker that gets none computes one row at weight 0."""
    mine = np.arange(rank, len(chunks), world)
    if len(mine):
        return make_batch(pool.sequences, pool.rows, chunks.take(mine))
    spare = make_batch(pool.sequences, pool.rows, chunks.take(np.zeros(1, dtype=np.int64)))
    spare.weights.zero_()
    return spare


def batches(pool: Pool, settings: TrainingSettings, number: int, epochs: int) -> Iterator[Chunks]:
    """The global batches of a round."""
    for epoch in range(epochs):
        rng = np.random.default_rng([settings.seed, number, epoch])
        chunks = pool.epoch(settings, rng, shift=epoch > 0)
        for at in range(0, len(chunks), settings.batch_size):
            yield chunks.take(np.arange(at, min(at + settings.batch_size, len(chunks))))


def fit_round(
    worker: Worker, plan: Plan, new: Sequences, old: Sequences | None, table: ItemTable
) -> dict[str, Any] | None:
    """Train one round on every rank.

    Returns:
        Figures for lineage and metrics, or None if a stop was asked for.
    """
    settings, number = worker.settings, worker.progress.number + 1
    pool = make_pool(new, old, table)
    epochs = settings.initial_epochs if plan.first else settings.epochs_per_window
    limit = settings.max_seconds_initial if plan.first else settings.max_seconds_per_window
    peak = settings.lr if plan.first else settings.window_lr
    total = epochs * pool.steps_per_epoch(settings)
    texts = worker.texts.of(table) if worker.texts is not None else None
    stepper = Stepper(worker, pool, table, number, texts)
    torch.manual_seed(settings.seed + 7919 * number + 104729 * worker.rank)
    began, done, step = time.monotonic(), 0.0, 0
    for step, chunks in enumerate(batches(pool, settings, number, epochs)):
        if step % SYNC_STEPS == 0:
            elapsed = (time.monotonic() - began) / limit
            done, stop = worker.agree((max(done, step / total, elapsed), worker.stop_requested()))
            if stop:
                return None
            if done >= 1.0:
                break
        stepper.step(chunks, learning_rate(peak, step, settings.warmup_steps, total, max(done, step / total)))
        if worker.rank == 0:
            stepper.tell(plan, step + 1, total, max(done, step / total), time.monotonic() - began)
    return {
        "from": worker.progress.weights_of,
        **stepper.figures(),
        "seconds": round(time.monotonic() - began, 2),
        "planned_steps": total,
    }


class Stepper:
    """One optimiser step at a time, and the running figures.

    Args:
        worker: engine, device, settings, progress. pool: what is drawn from. number: of the round.
        table: the items; with a text tower, its ``text`` is what the tower gives now.
        texts: of every row of ``table``; needed with a text tower only.
    """

    def __init__(
        self, worker: Worker, pool: Pool, table: ItemTable, number: int, texts: list[str] | None = None
    ) -> None:
        self.worker, self.pool, self.number = worker, pool, number
        self.live = Live(worker, pool, texts) if texts is not None else None
        self.summed = pool.sequences.cumulative_weights()
        self._set_text(table.text)
        self.slots = torch.from_numpy(table.slots).to(worker.device)
        self.sampled = len(table) > worker.settings.full_softmax_items
        self.log_weights = self._log_weights(len(table)) if self.sampled else None
        self.generator = torch.Generator(device=worker.device)
        self.steps = 0
        self.losses: list[tuple[float, float]] = []
        self.meter = StepMeter()
        worker.engine.train()

    def _set_text(self, vectors: NDArray[np.float32]) -> None:
        self.text = torch.from_numpy(vectors).to(self.worker.device)
        # ZeRO-3 knows a backward to be over by the gradient of its inputs: without one it frees weights too early.
        self.text.requires_grad_(self.worker.settings.deepspeed.stage == 3)

    def _log_weights(self, size: int) -> torch.Tensor:
        """Negatives: half in proportion to the square root of frequency, half uniform."""
        counts = np.sqrt(np.bincount(self.pool.rows, minlength=size).astype(np.float64))
        return torch.from_numpy(np.log(0.5 * counts / counts.sum() + 0.5 / size))

    def step(self, chunks: Chunks, lr: float) -> None:
        """Forward, backward and update on one global batch."""
        began = time.perf_counter()
        worker, settings = self.worker, self.worker.settings
        batch = local_batch(self.pool, chunks, worker.rank, worker.world).to(worker.device)
        share = worker.world / max(global_weight(chunks, self.summed), 1e-9)
        self.generator.manual_seed((settings.seed * 1_000_003 + worker.progress.step) % 2**63)
        set_lr(worker.engine, lr)
        if self.live is not None and self.live.due(self.steps):
            self._set_text(self.live.refreshed())
        mixed, clean, adversarial = worker.engine(
            batch,
            self.text,
            self.slots,
            self._negatives(),
            strength=settings.adversarial.strength(worker.progress.step),
            generator=self.generator,
            live=self.live.pick(chunks) if self.live is not None else None,
        )
        worker.engine.backward(mixed * share)
        worker.engine.step()
        worker.progress.step += 1
        self.steps += 1
        self._note(clean * share, adversarial * share)
        if worker.rank == 0:
            self.meter.step(time.perf_counter() - began, len(chunks), *self.losses[-1])

    def _negatives(self) -> Negatives | None:
        if self.log_weights is None:
            return None
        settings = self.worker.settings
        generator = torch.Generator().manual_seed(settings.seed + self.worker.progress.step)
        drawn = draw_negatives(self.log_weights, settings.negatives, generator)
        return Negatives(drawn.rows.to(self.worker.device), drawn.log_q.to(self.worker.device))

    def _note(self, clean: torch.Tensor, adversarial: torch.Tensor) -> None:
        """Keep the global means (each rank's share is scaled so that their mean is the global loss)."""
        pair = torch.stack([clean, adversarial]).float()
        if self.worker.world > 1:
            torch.distributed.all_reduce(pair)
            pair /= self.worker.world
        self.losses.append((float(pair[0]), float(pair[1])))

    def tell(self, plan: Plan, step: int, total: int, done: float, elapsed: float) -> None:
        """Put the state of the round into the status."""
        clean, adversarial = self.losses[-1]
        eta = elapsed * (1 - done) / done if done > 0 else None
        self.worker.status.update(
            phase="training",
            detail=f"{plan.version}: step {step} of at most {total}",
            progress=min(done, 1.0),
            eta_s=eta,
            step=step,
            total_steps=total,
            loss=clean,
            adversarial_loss=adversarial or None,
        )

    def figures(self) -> dict[str, Any]:
        """What the round did: steps, first and last mean losses."""
        if not self.losses:
            return {"steps": 0}
        first, last = np.mean(self.losses[:10], axis=0), np.mean(self.losses[-10:], axis=0)
        return {
            "steps": self.steps,
            "loss_first": float(first[0]),
            "loss": float(last[0]),
            "adversarial_loss": float(last[1]),
            "losses_head": [clean for clean, _ in self.losses[:20]],
        }
