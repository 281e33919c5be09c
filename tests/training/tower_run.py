"""One worker that trains text towers through the engine; run as a program by test_text_tower.py.

Arguments: rank, world, rendezvous file, a JSON list of cases, a file for the findings (written by rank 0).
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from tests.training.synthetic import ITEM_IDS, ITEMS, settings, window_table
from training import engine as engines
from training.config import DeepSpeedConfig, TrainingSettings
from training.data import from_window
from training.fit import Stepper, batches, make_pool
from training.items import ItemTable
from training.text_tower import encode_table, load_tower


def changes(case: dict[str, Any]) -> TrainingSettings:
    base = settings()
    shape = base.model.model_copy(update={"text_dim": 16})
    fixed = {"finetune_layers": 1, "finetune_refresh_epochs": 0, "encoder_lr": base.lr / 4}
    # without decay a weight moves only where a gradient reaches it
    told = {**fixed, **case["settings"]}
    told["deepspeed"] = DeepSpeedConfig(**told.get("deepspeed", {}))
    return settings(model=shape, weight_decay=0.0, **told)


def ring() -> Any:
    rng = np.random.default_rng(0)
    rows = [(int(rng.integers(40)) + np.arange(6)) % 40 for _ in range(16)]
    return from_window(window_table([{"items": [int(ITEMS[i]) for i in row]} for row in rows]))


def train(case: dict[str, Any], rank: int, world: int) -> dict[str, Any]:
    chosen = changes(case)
    device = engines.device_of(chosen)
    engines.prepare(device)
    tower = load_tower(case["source"], chosen)
    order = np.argsort(ITEMS)
    names = [ITEM_IDS[i] for i in order]
    texts = [f"item w{name.split('-')[1]}" for name in names]
    texts[3] = ""  # an item without a text
    # without ids, what tells items apart is their text
    table = ItemTable(ITEMS[order], np.full(40, -1), np.zeros((40, 16), np.float32), names)
    table = encode_table(tower, table, texts)
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    trained = sorted(name for name, value in tower.named_parameters() if value.requires_grad)
    engine = engines.build_engine(chosen.model, chosen, device, tower=tower)
    worker: Any = SimpleNamespace(
        engine=engine,
        device=device,
        settings=chosen,
        rank=rank,
        world=world,
        progress=SimpleNamespace(step=0),
    )
    pool = make_pool(ring(), None, table)
    stepper = Stepper(worker, pool, table, 1, texts)
    assert stepper.live is not None
    picked: list[list[int]] = []
    for chunks in list(batches(pool, chosen, 1, 40))[: case["steps"]]:
        picked.append(stepper.live.pick(chunks).rows.tolist())
        stepper.step(chunks, chosen.lr)
    cache_moved = bool((stepper.text.detach() - torch.from_numpy(table.text)).abs().max() > 1e-3)
    after = engines.tower_weights(engine)
    assert after is not None
    rates = [group["lr"] for group in engine.optimizer.param_groups]
    engine.destroy()
    return {
        "losses": [clean for clean, _ in stepper.losses],
        "trained": trained,
        "changed": sorted(name for name in after if not torch.equal(after[name], before[name])),
        "size": sum(float(value.double().abs().sum()) for value in after.values()),
        "rates": rates,
        "picked": picked,
        "cache_moved": cache_moved,
    }


if __name__ == "__main__":
    rank, world = int(sys.argv[1]), int(sys.argv[2])
    dist.init_process_group("gloo", init_method=f"file://{sys.argv[3]}", rank=rank, world_size=world)
    found = {case["name"]: train(case, rank, world) for case in json.loads(sys.argv[4])}
    if rank == 0:
        Path(sys.argv[5]).write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()
