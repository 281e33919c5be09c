"""One measurement of Headrace's training, in processes of its own.

    python -m tests.bench.train_headrace SPEC.json RESULT.json

The learner's own round (`training.fit.fit_round`) on the learner's own engine (`training.engine`), with its status
file and its agreement between workers; without Ray Train around it, which does nothing between two steps, and without
what follows a round (checkpoint, exam, bundle). A first round warms up, a second one is the measurement: `seconds` is
what the round itself reports, and what it trained is counted by cutting the same batches once more afterwards.
"""

import json
import os
import sys
import tempfile
from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from streaming.hashing import stable_hash
from training import engine as engines
from training.config import AdversarialConfig, ModelConfig, TrainingSettings
from training.data import Chunks, Sequences, from_window
from training.fit import batches, fit_round, make_pool
from training.items import ItemSlots, ItemTable, build_table
from training.loop import Worker
from training.plan import Plan
from training.progress import PopularityCounts, Progress
from training.status import StatusWriter

TEXT_DIM = 384  # as wide as the packaged encoder's vectors
PLAN = Plan(version="v0002", train=(), exam=(), replay=(), first=False)


def settings_of(spec: dict[str, Any], items: int) -> TrainingSettings:
    """The learner's settings for this measurement; rounds end when the time is up."""
    model = ModelConfig(
        dim=spec["dim"],
        blocks=spec["blocks"],
        heads=spec["heads"],
        feed_factor=spec["feed_factor"],
        length=spec["length"],
        dropout=spec["dropout"],
        text_dim=TEXT_DIM,
        id_capacity=items,
        num_types=1,
        repeats="plain",  # what RecBole learns
    )
    return TrainingSettings(
        model=model,
        adversarial=AdversarialConfig(enabled=spec["adversarial"], start_step=0),
        precision=spec["precision"],
        batch_size=spec["batch"],
        overlap=spec["overlap"],
        full_softmax_items=items,
        epochs_per_window=1_000_000,
        max_seconds_per_window=spec["seconds"],
    )


class BenchWorker(Worker):
    """A worker of the learner outside Ray: no checkpoint to begin from, and no windows to look out for."""

    texts: Any = None  # the text encoder is frozen, as in the learner's defaults

    def __init__(
        self, data_dir: Path, settings: TrainingSettings, slots: ItemSlots, status: StatusWriter
    ) -> None:
        self.data_dir, self.settings, self.status = data_dir, settings, status
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = engines.device_of(settings)
        engines.prepare(self.device)
        self.progress = Progress(slots, PopularityCounts(1.0))
        self.engine = engines.build_engine(settings.model, settings, self.device)


def make_table(item_ids: list[str], sequences: Sequences, slots: ItemSlots) -> ItemTable:
    """Every item with an id slot and a text vector; what the vectors say does not matter here."""
    hashes = stable_hash(item_ids)
    vectors = np.random.default_rng(0).normal(size=(len(item_ids), TEXT_DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    slots.touch(hashes, tick=1)
    return build_table(slots, hashes, item_ids, vectors, sequences.items, TEXT_DIM)


def count(chunks: Iterable[Chunks]) -> dict[str, Any]:
    """Batches, rows, targets and the mean number of events that stand before a target within its row."""
    steps = rows = targets = context = 0
    for batch in chunks:
        near, far = batch.first_target - batch.start, batch.stop - batch.start  # of the first and last target
        each = far - near + 1
        steps, rows, targets = steps + 1, rows + len(batch), targets + int(each.sum())
        context += int(((near + far) * each).sum()) // 2
    return {"steps": steps, "rows": rows, "targets": targets, "mean_context": context / max(targets, 1)}


def measure(rank: int, spec: dict[str, Any], scratch: str, result: str) -> None:
    """One worker, from the process group to the result; rank 0 writes it."""
    world = spec["workers"]
    identity = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": 0}
    os.environ.update({name: str(value) for name, value in identity.items()}, MASTER_ADDR="127.0.0.1")
    dist.init_process_group("gloo", init_method=f"file://{scratch}/rendezvous", rank=rank, world_size=world)
    torch.set_num_threads(spec["threads"])
    sequences = from_window(pq.read_table(spec["window"]))
    settings = settings_of(spec, len(spec["item_ids"]))
    slots = ItemSlots(settings.model.id_capacity)
    table = make_table(spec["item_ids"], sequences, slots)
    with StatusWriter(Path(scratch), enabled=rank == 0) as status:
        worker = BenchWorker(Path(scratch), settings, slots, status)
        worker.settings = settings.model_copy(update={"max_seconds_per_window": spec["warm_up_s"]})
        fit_round(worker, PLAN, sequences, None, table)
        worker.settings = settings
        figures = fit_round(worker, PLAN, sequences, None, table)
    if figures is None:
        raise AssertionError("nobody asks this worker to stop")
    if rank == 0:
        pool, number = make_pool(sequences, None, table), worker.progress.number + 1
        trained = count(islice(batches(pool, settings, number, settings.epochs_per_window), figures["steps"]))
        found = {
            **trained,
            "seconds": figures["seconds"],
            "targets_per_epoch": count(batches(pool, settings, number, 1))["targets"],
            "items": len(table),
            "weights": sum(weight.numel() for weight in worker.engine.parameters()),
            "loss_is_finite": bool(np.isfinite(figures["loss"])),
            "threads": torch.get_num_threads(),
        }
        Path(result).write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    """As many processes as the spec has workers."""
    spec, result = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    with tempfile.TemporaryDirectory(prefix="headrace-train-") as scratch:
        if spec["workers"] == 1:
            measure(0, spec, scratch, result)
        else:
            mp.spawn(measure, args=(spec, scratch, result), nprocs=spec["workers"], join=True)


if __name__ == "__main__":
    main()
