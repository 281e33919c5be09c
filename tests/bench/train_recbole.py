"""One measurement of RecBole's SASRec. Runs in the environment of peers_train.txt, which knows nothing of Headrace.

    python -P train_recbole.py SPEC.json RESULT.json

RecBole is used as it is published: its dataset with its copy of ml-100k, its data loader, its `Trainer._train_epoch`.
What `Trainer.fit` does between epochs (examination, checkpoints) is left out. Its data augmentation, which makes one
row of every prefix of a user's history, happens before the clock starts. The clock runs inside the epoch's own
iteration, from the first batch after the warm-up to the first batch after the time is up.
"""

import json
import logging
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data import create_dataset, data_preparation
from recbole.trainer import Trainer
from recbole.utils import get_model, init_seed


class Timed:
    """A training loader that goes round until the time is up, and counts what was trained.

    Attributes:
        rows: training rows handed out within the measured time. steps: batches. seconds: that time.
    """

    def __init__(self, loader: Any, warm_up_s: float, seconds: float) -> None:
        self.loader, self.warm_up_s, self.limit_s = loader, warm_up_s, seconds
        self.rows, self.steps, self.seconds = 0, 0, 0.0

    def __iter__(self) -> Iterator[Any]:
        began, start = time.monotonic(), None
        while True:
            for interaction in self.loader:
                now = time.monotonic()
                if start is None and now - began >= self.warm_up_s:
                    start = now
                if start is not None:
                    self.seconds = now - start
                    if self.steps and self.seconds >= self.limit_s:
                        return
                    self.rows += len(interaction)
                    self.steps += 1
                yield interaction


def settings(spec: dict[str, Any]) -> dict[str, Any]:
    """RecBole's configuration: the common dimensions, everything else as published."""
    return {
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "eval_args": {"split": {"LS": "valid_and_test"}, "group_by": "user", "order": "TO", "mode": "full"},
        "train_neg_sample_args": None,  # full softmax: no negatives are drawn
        "loss_type": "CE",
        "hidden_size": spec["dim"],
        "n_layers": spec["blocks"],
        "n_heads": spec["heads"],
        "inner_size": spec["feed_factor"] * spec["dim"],
        "hidden_dropout_prob": spec["dropout"],
        "attn_dropout_prob": 0.0,  # Headrace has none; at 0 torch skips it
        "MAX_ITEM_LIST_LENGTH": spec["length"],
        "train_batch_size": spec["batch"],
        "use_gpu": False,
        "show_progress": False,
        "state": "ERROR",
    }


def measure(spec: dict[str, Any]) -> dict[str, Any]:
    """Train for `warm_up_s` and then `seconds`; returns the counts."""
    torch.set_num_threads(spec["threads"])
    config = Config(model="SASRec", dataset="ml-100k", config_dict=settings(spec))
    init_seed(config["seed"], config["reproducibility"])
    logging.disable(logging.INFO)
    dataset = create_dataset(config)
    loader, *_ = data_preparation(config, dataset)
    model = get_model("SASRec")(config, loader.dataset).to(config["device"])
    trainer = Trainer(config, model)
    timed = Timed(loader, spec["warm_up_s"], spec["seconds"])
    loss = trainer._train_epoch(timed, 0)  # the sum over all batches, warm-up included
    lengths = loader._dataset.inter_feat[dataset.item_list_length_field]
    return {
        "targets": timed.rows,  # a row is a prefix with its one next item
        "rows": timed.rows,
        "steps": timed.steps,
        "seconds": timed.seconds,
        "targets_per_epoch": len(lengths),
        "mean_context": float(lengths.double().mean()),
        "items": int(dataset.item_num) - 1,  # RecBole counts its padding as an item
        "weights": sum(weight.numel() for weight in model.parameters()),
        "loss_is_finite": math.isfinite(loss),
        "threads": torch.get_num_threads(),
    }


if __name__ == "__main__":
    spec_file, result_file = map(Path, sys.argv[1:3])
    del sys.argv[1:]  # RecBole reads the command line, too
    result_file.write_text(json.dumps(measure(json.loads(spec_file.read_text()))))
