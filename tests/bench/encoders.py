"""Which runtime encodes histories fastest: `python -m tests.bench.encoders`.

One model of the default shape with random weights, histories of 50 events, one thread; lower quartile of 60 calls.
"""

import copy
import time
from collections.abc import Callable

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from serving.user_encoder import EncoderInput, UserEncoder
from training.config import ModelConfig
from training.model import SequenceModel

ITEMS, LENGTH = 10_000, 50


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(repeats="excluded")).eval()
    vectors = torch.nn.functional.normalize(torch.randn(ITEMS, model.config.dim), dim=-1)
    onnx, compiled = UserEncoder(model), torch.compile(copy.deepcopy(model), dynamic=False)
    table = Table("histories", "PyTorch, eager", "torch.compile", "ONNX Runtime", title="ms per history")
    for B in (1, 4, 16, 32):
        rng = np.random.default_rng(B)
        told = [_history(rng) for _ in range(B)]
        rows, times, types = (
            torch.from_numpy(np.stack([getattr(h, p) for h in told])) for p in ("rows", "times", "types")
        )
        fed = (vectors[rows], types, times, torch.ones(B, LENGTH, dtype=torch.bool))

        def module(net: Callable[..., torch.Tensor], fed: tuple[torch.Tensor, ...] = fed) -> None:
            with torch.inference_mode():
                net(*fed)

        found = [
            _lower_quartile_ms(lambda: module(model)),
            _lower_quartile_ms(lambda: module(compiled)),
            _lower_quartile_ms(lambda told=told: onnx.encode(told, vectors.numpy())),
        ]
        table.add_row(str(B), *[f"{ms / B:.3f}" for ms in found])
    Console().print(table)


def _history(rng: np.random.Generator) -> EncoderInput:
    times = np.sort(rng.integers(0, 10**9, LENGTH))
    return EncoderInput(rng.integers(0, ITEMS, LENGTH), times, rng.integers(0, 3, LENGTH))


def _lower_quartile_ms(call: Callable[[], object], times: int = 60) -> float:
    for _ in range(10):
        call()
    seen = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seen.append(time.perf_counter() - started)
    return float(np.quantile(seen, 0.25)) * 1000


if __name__ == "__main__":
    main()
