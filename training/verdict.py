"""What follows a trained round on rank 0: exam, bundle, registry."""

from __future__ import annotations

import logging
import time
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from streaming.windows import iso
from training import telemetry
from training.bundle import load_bundle, save_bundle
from training.config import ModelConfig
from training.current_encoder import SavedEncoder
from training.data import Sequences
from training.gate import Contender, judge, make_exam
from training.items import ItemTable
from training.model import SequenceModel
from training.plan import Plan

if TYPE_CHECKING:
    from training.loop import Worker

log = logging.getLogger("headrace.training")


def settle(
    worker: Worker,
    plan: Plan,
    weights: dict[str, torch.Tensor],
    unseen: Sequences,
    encoder: SavedEncoder | None = None,
) -> None:
    """Judge the candidate on ``unseen``, write its bundle, promote or reject it. Repeating it is harmless.

    Each contender stands on the vectors of its own text encoder; the bundle gets a copy of ``encoder``.
    """
    progress, settings = worker.progress, worker.settings
    shape = ModelConfig.model_validate(progress.shape)
    table = worker.make_table(np.concatenate([progress.slots.hashes, unseen.items]))
    popularity = progress.popularity.shares(table.hashes)
    model = SequenceModel(shape)
    model.load_state_dict(weights)
    parent = worker.registry.current()
    candidate = Contender(plan.version, model, table.slots)
    incumbent = _contender(worker, parent, table) if parent else None
    name = f"{iso(plan.exam[0])} to {iso(plan.exam[-1])}" if len(plan.exam) > 1 else iso(plan.exam[0])
    exam = make_exam(unseen, table, popularity, settings.gate, length=shape.length, name=name)
    began = time.monotonic()
    verdict = judge(candidate, incumbent, exam, settings.gate)
    said = {"promoted": verdict.promote, "reason": verdict.reason}
    evaluation = {**said, "seconds": round(time.monotonic() - began, 2), **verdict.numbers}
    save_bundle(
        worker.registry.models_dir,
        plan.version,
        model=model,
        table=table,
        popularity=popularity,
        event_types=worker.streaming.event_types,
        evaluation=evaluation,
        lineage=_lineage(worker, plan, parent, table, encoder),
        encoder=encoder,
        index_items=settings.index_items,
    )
    if verdict.promote:
        worker.registry.promote(plan.version, verdict.reason)
    else:
        worker.registry.reject(plan.version, verdict.reason)
    telemetry.VERDICTS.labels("promoted" if verdict.promote else "rejected", verdict.cause).inc()
    log.info("%s %s: %s", plan.version, "promoted" if verdict.promote else "rejected", verdict.reason)


def _contender(worker: Worker, version: str, table: ItemTable) -> Contender:
    """The incumbent as it would serve this exam: items it never saw stand on their text."""
    bundle = load_bundle(worker.registry.path(version))
    known = np.concatenate([bundle.item_hashes, bundle.history_hashes])
    slots = np.concatenate([bundle.item_slots, bundle.history_slots])
    texts = worker.texts
    text = texts.seen_by(bundle.encoder, table, worker.catalog) if texts is not None else None
    return Contender(version, bundle.model, _look_up(known, slots, table.hashes), text)


def _look_up(
    known: NDArray[np.uint64], slots: NDArray[np.int64], wanted: NDArray[np.uint64]
) -> NDArray[np.int64]:
    if len(known) == 0:
        return np.full(len(wanted), -1, dtype=np.int64)
    order = np.argsort(known, kind="stable")
    at = np.minimum(np.searchsorted(known[order], wanted), len(known) - 1)
    return np.where(known[order][at] == wanted, slots[order][at], -1)


def _lineage(
    worker: Worker, plan: Plan, parent: str | None, table: ItemTable, encoder: SavedEncoder | None
) -> dict[str, Any]:
    progress = worker.progress
    return {
        "created_at": time.time(),
        "code_version": _code_version(),
        "parent": parent,
        "windows": [iso(start) for start in plan.train],
        "exam_windows": [iso(start) for start in plan.exam],
        "replayed_windows": len(plan.replay),
        "items": len(table),
        "items_with_id": int((table.slots >= 0).sum()),
        "catalog_version": worker.catalog.version,
        "text_encoder": {
            "name": worker.settings.text_encoder,
            "finetune": worker.settings.finetune,
            "fingerprint": encoder.fingerprint if encoder else None,
            "loaded": worker.texts.loaded if worker.texts else None,
        },
        "optimizer_steps": progress.step,
        "training": progress.training,
        "workers": worker.world,
        "settings": worker.settings.model_dump(mode="json"),
    }


def _code_version() -> str:
    try:
        return metadata.version("headrace")
    except metadata.PackageNotFoundError:
        return "not installed"
