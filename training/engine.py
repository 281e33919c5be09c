"""The DeepSpeed engine: the only room that imports DeepSpeed, and only when an engine is built.

Weights and optimiser state are float32 at every ZeRO stage; bf16 is arithmetic (autocast in the objective), which
costs a model of this size nothing in memory and keeps promoted weights exact. AdamW is torch's own, so nothing is
compiled at start. DeepSpeed's shared-memory op is left unbuilt: it serves `inference_all_reduce` of tensor-parallel
inference and no collective of training, and building it would cost a C++ compiler and half a minute.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from training.config import ModelConfig, TrainingSettings
from training.errors import LearnerError
from training.losses import Objective
from training.model import SequenceModel
from training.text_tower import TextTower

log = logging.getLogger("headrace.training")
_M_TRIM_THRESHOLD, _KEPT_BYTES = -1, 1 << 30  # glibc's malloc.h; freed bytes kept at most
_RATE = "lr_over_models"  # key of a parameter group: its learning rate over the recommender's


def has_compiler() -> bool:
    """True if a C++ compiler is on the PATH or named by CXX."""
    named = os.environ.get("CXX")
    return any(shutil.which(name) for name in (named, "c++", "g++", "clang++") if name)


def device_of(settings: TrainingSettings) -> torch.device:
    """Where a worker computes.

    Raises:
        LearnerError: a GPU was asked for and there is none.
    """
    if not settings.use_gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise LearnerError(
            "training.use_gpu is true but torch sees no GPU; set it to false or fix the driver"
        )
    return torch.device("cuda", torch.cuda.current_device())


def uses_bf16(settings: TrainingSettings, device: torch.device) -> bool:
    """Whether matrix products run in bf16: as set, or for `auto` where the hardware multiplies bf16 natively."""
    if settings.precision != "auto":
        return settings.precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported())


def prepare(device: torch.device) -> None:
    """Import DeepSpeed for this device and attach it to the process group that Ray Train set up.

    Idempotent. Logs a notice where no compiler is at hand: training then needs none.
    """
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    if device.type == "cpu":
        _keep_freed_memory()
        if not has_compiler():
            log.warning(
                "no C++ compiler found: workers talk over gloo alone (training needs no more than that)"
            )
        deepspeed.ops.__compatible_ops__ = {}  # DeepSpeed builds the shared-memory op only if listed here
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    backend = "nccl" if device.type == "cuda" else "gloo"
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)


def _keep_freed_memory() -> None:
    """Have glibc keep what a step frees for the next one, instead of giving it back and faulting it in again."""
    try:
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    except (AttributeError, OSError):  # another C library
        log.debug("malloc cannot be told to keep memory")


def engine_config(settings: TrainingSettings, workers: int) -> dict[str, Any]:
    """DeepSpeed's configuration for these settings.

    Raises:
        LearnerError: the batch does not divide among the workers, or a setting of ours is set a second time.
    """
    shape = settings.deepspeed
    if settings.batch_size % workers:
        raise LearnerError(
            f"training.batch_size must be a multiple of num_workers; got {settings.batch_size} for {workers} workers"
        )
    ours = {
        "train_micro_batch_size_per_gpu": settings.batch_size // workers,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": settings.gradient_clip,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "lr": settings.lr,
                "betas": [0.9, 0.98],
                "weight_decay": settings.weight_decay,
                "torch_adam": True,
            },
        },
        "zero_optimization": shape.model_dump(exclude={"more"}),
        "steps_per_print": 10**9,
    }
    return _laid_over(ours, shape.more, "training.deepspeed.more")


def _laid_over(base: dict[str, Any], more: dict[str, Any], name: str) -> dict[str, Any]:
    """Both together, section by section; what `base` says cannot be said again."""
    for key in base.keys() & more.keys():
        if not isinstance(base[key], dict) or not isinstance(more[key], dict):
            raise LearnerError(
                f"{name}.{key} is set by Headrace already ({base[key]!r}); remove it from there"
            )
    parts = {key: _laid_over(base[key], more[key], f"{name}.{key}") for key in base.keys() & more.keys()}
    return base | more | parts


def build_engine(
    shape: ModelConfig,
    settings: TrainingSettings,
    device: torch.device,
    weights: dict[str, Tensor] | None = None,
    tower: TextTower | None = None,
    blank: NDArray[np.int64] | None = None,
) -> Any:
    """A fresh engine around an :class:`Objective`, with new optimiser state.

    Args:
        shape: the model's. settings: optimiser, stage, precision. device: from :func:`device_of`.
        weights: state of a :class:`SequenceModel` to start from; None = initialised from ``settings.seed``.
        tower: the text encoder where it is trained too; its trainable parameters get a rate of their own.
        blank: rows of the id table that start at zero: their items live by their text until they are learned.

    Raises:
        LearnerError: the batch does not divide among the workers, or the tower's vectors have another width.
    """
    import deepspeed

    torch.manual_seed(settings.seed)  # every worker starts from the same weights
    model = SequenceModel(shape)
    if weights is not None:
        model.load_state_dict(weights)
    if blank is not None:
        with torch.no_grad():
            model.id_embedding.weight[torch.from_numpy(blank)] = 0.0
    if tower is not None and tower.dim != shape.text_dim:
        raise LearnerError(
            f"expected a text encoder with vectors of width {shape.text_dim}, as the model reads; got {tower.dim}: "
            "set training.text_encoder to the one that filled the catalogue, or start a new data directory"
        )
    bf16 = uses_bf16(settings, device)
    limit = settings.influence.gradient_ratio if settings.influence.enabled else 0.0
    objective = Objective(model, settings.adversarial, bf16, tower, limit).to(device)
    if settings.deepspeed.stage == 3:
        # Stage 3 would free a module's weights after the perturbation's backward, before the loss's own needs them:
        # as one leaf the model is gathered for a whole step and stays partitioned in between.
        deepspeed.utils.set_z3_leaf_modules(objective, [Objective])
    engine, *_ = deepspeed.initialize(
        model=objective,
        model_parameters=_groups(objective, settings),
        config=engine_config(settings, dist.get_world_size()),
    )
    return engine


def _groups(objective: Objective, settings: TrainingSettings) -> list[Any]:
    """What is trained; with a tower in two groups, the second's rate a fixed multiple of the first's."""
    model = [p for p in objective.model.parameters() if p.requires_grad]
    if objective.tower is None:
        return model
    tuned = [p for p in objective.tower.parameters() if p.requires_grad]
    return [{"params": model}, {"params": tuned, _RATE: settings.encoder_lr / settings.lr}]


def gathered(engine: Any, module: torch.nn.Module) -> AbstractContextManager[Any]:
    """A context in which ``module`` of the engine is whole on every worker, whatever the ZeRO stage.

    Every worker must enter it; nothing may be changed in it.
    """
    if engine.zero_optimization_stage() < 3:
        return nullcontext()
    import deepspeed

    context: AbstractContextManager[Any] = deepspeed.zero.GatheredParameters(list(module.parameters()))
    return context


def tower_of(engine: Any) -> TextTower | None:
    """The text encoder that the engine trains, if any."""
    tower: TextTower | None = engine.module.tower
    return tower


def tower_weights(engine: Any) -> dict[str, Tensor] | None:
    """The whole tower on CPU, float32, on every worker (all must call it); None without a tower."""
    tower = tower_of(engine)
    if tower is None:
        return None
    with gathered(engine, tower):
        return {name: tensor.detach().float().cpu().clone() for name, tensor in tower.state_dict().items()}


def full_weights(engine: Any) -> dict[str, Tensor]:
    """The recommender on CPU, float32, whatever the ZeRO stage. Every worker must call it; rank 0's is complete."""
    model: SequenceModel = engine.module.model
    with gathered(engine, model):
        return {name: tensor.detach().float().cpu().clone() for name, tensor in model.state_dict().items()}


def set_lr(engine: Any, lr: float) -> None:
    """Set the learning rate of the model, and the text encoder's in proportion."""
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group.get(_RATE, 1.0)
