"""The per-worker loop of the continuous learner: one Ray Train run that stays up between windows.

A round: rank 0 sees new complete windows and decides (`training.plan`), everybody agrees by broadcast; all train on
the new windows mixed with replayed older ones; the engine and the learner's memory are saved as one checkpoint and
reported; then rank 0 judges the candidate, writes its bundle and tells the registry. What is durable, in order:

1. the checkpoint (weights + which windows they have seen), committed by Ray Train;
2. a line in `learner/trained.jsonl`, the evidence of what was trained by which version;
3. the bundle; 4. the verdict in the registry, and `current` last.

A worker killed before 1 repeats the round from the checkpoint before; one killed between 1 and 4 comes back with the
round's weights and only judges again. So a window is neither skipped nor trained twice.

A rejected candidate is dropped altogether: the next round starts from the incumbent's weights (and text encoder,
where that is trained), with fresh optimiser state, so poison cannot accumulate. Its windows count as trained and are
not tried again. The same happens when an operator promotes another version: training goes on from what is being
served. Before the first promotion there is nothing to go back to, and training goes on from the rejected weights.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from streaming import logs
from streaming.config import StreamingSettings
from streaming.journal import append_line
from streaming.logs import LogSettings
from streaming.traces import make_tracer, within
from streaming.windows import complete_windows, iso
from training import engine as engines
from training import telemetry
from training.augment import augmented
from training.bundle import load_bundle
from training.config import ModelConfig, TrainingSettings
from training.current_encoder import SavedEncoder, encoder_of
from training.data import Sequences, concat
from training.errors import LearnerError
from training.fit import fit_round
from training.influence import limited
from training.items import ItemSlots, ItemTable, build_table
from training.pace import make_nice, wait_for_file
from training.plan import Plan
from training.progress import PopularityCounts, Progress
from training.registry import Registry
from training.scout import Scout
from training.status import StatusWriter
from training.texts import TextSide
from training.verdict import settle
from training.warden import trusted_window, worth

log = logging.getLogger("headrace.training")
STOP_FILE = "stop"
Weights = dict[str, torch.Tensor]


def train_loop(config: dict[str, Any]) -> None:
    """Entry of every Ray Train worker.

    Args:
        config: ``data_dir`` str, ``streaming`` and ``training`` settings as plain dicts; ``log`` likewise or None.
    """
    import ray.train

    streaming = StreamingSettings.model_validate(config["streaming"])
    settings = TrainingSettings.model_validate(config["training"])
    data_dir = Path(config["data_dir"])
    rank = ray.train.get_context().get_world_rank()
    if config.get("log"):
        logs.configure(LogSettings.model_validate(config["log"]), f"trainer-{rank}")
    if rank == 0:
        telemetry.tell_zeros()
    with StatusWriter(data_dir, enabled=rank == 0) as status:
        status.update(phase="loading", detail="starting the training engine", progress=0.0)
        try:
            Worker(data_dir, streaming, settings, status).run()
        except Exception as error:  # Ray Train starts the workers again; people must see why
            status.update(
                phase="failed", detail="starting again", error=f"{type(error).__name__}: {error}"[:2000]
            )
            raise
        status.update(phase="stopped", detail="stopped on request", progress=0.0)


class Worker:
    """One worker's view of the loop; its methods are called by all ranks in step; only rank 0 asks the scout."""

    def __init__(
        self, data_dir: Path, streaming: StreamingSettings, settings: TrainingSettings, status: StatusWriter
    ) -> None:
        self.data_dir, self.streaming, self.settings, self.status = data_dir, streaming, settings, status
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self.device = engines.device_of(settings)
        self.registry = Registry(data_dir / "models", keep=settings.keep_versions)
        tracer = make_tracer(streaming.traces, "trainer", always=True) if self.rank == 0 else None
        self._span = partial(within, tracer)
        self._set_pace()
        engines.prepare(self.device)
        tuned = settings.finetune != "frozen"
        self.texts = TextSide(settings, self.rank, self.world) if tuned else None
        self.carried: SavedEncoder | None = None  # the incumbent's own text encoder
        self.engine: Any = None
        self.table: ItemTable | None = None
        self.progress = self._restore()
        self.scout = Scout(data_dir, streaming, settings, self.progress, self.registry, status)
        self.catalog = self.scout.catalog

    def run(self) -> None:
        """Rounds until a stop is asked for."""
        if self.rank == 0:
            self.registry.repair()
        if self.progress.plan and self.agree(self._verdict_is_missing()):
            self._judge(self.progress.plan)
        while (plan := self._next_plan()) is not None:
            window = iso(plan.train[-1])
            with logs.about_window(window), self._span("round", window=window, version=plan.version):
                self._catch_up_with_registry()
                with self._span("train"):
                    trained = self._train(plan)
                if not trained:
                    return
                with self._span("report"):
                    self._report(plan)
                with self._span("judge"):
                    self._judge(plan)

    def agree(self, value: Any) -> Any:
        """Rank 0's value, on every rank."""
        if self.world == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def stop_requested(self) -> bool:
        """True on a rank that sees the stop file; agree before acting on it."""
        return (self.data_dir / "learner" / STOP_FILE).exists()

    def _restore(self) -> Progress:
        import ray.train

        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            settings = self.settings
            half_life_ms = settings.popularity_half_life_h * 3.6e6
            slots = ItemSlots(settings.model.id_capacity)
            return Progress(slots, PopularityCounts(half_life_ms), tuned=settings.tuned)
        with checkpoint.as_directory() as folder:
            progress = Progress.load(Path(folder))
            if progress.tuned != self.settings.tuned:
                return self._without_engine(progress)
            self._build_engine(progress)
            loaded, _ = self.engine.load_checkpoint(folder, tag="engine")
            if self.texts is not None:
                self.texts.forget()
                self.texts.loaded = None  # the checkpoint's weights, whatever they were loaded from once
        if loaded is None:
            raise LearnerError(
                f"the checkpoint {checkpoint.path} holds no engine state; remove it to train anew"
            )
        log.info("resumed after %s, %d windows trained", f"v{progress.number:04d}", len(progress.trained))
        return progress

    def _without_engine(self, progress: Progress) -> Progress:
        """The memory of a checkpoint whose engine trains something else; weights come from what is served."""
        log.warning(
            "training.finetune is %r now, the checkpoint was made with %r: training goes on from what is served",
            self.settings.tuned,
            progress.tuned,
        )
        progress.weights_of = progress.plan = None
        return progress

    def _build_engine(
        self,
        progress: Progress,
        weights: Weights | None = None,
        text_weights: Weights | None = None,
        blank: NDArray[np.int64] | None = None,
    ) -> None:
        if self.engine is not None:
            self.engine.destroy()
        shape = ModelConfig.model_validate(progress.shape)
        tower = self.texts.tower(text_weights) if self.texts is not None else None
        self.engine = engines.build_engine(shape, self.settings, self.device, weights, tower, blank)

    def _pretrained(self) -> Weights | None:
        """The text encoder after masked-language pre-training, where that is set."""
        if self.texts is None or not self.settings.mlm_epochs:
            return None
        self.status.update(phase="loading", detail="masked-language pre-training on the catalogue")
        weights: Weights = self.agree(self.texts.adapted(self.catalog) if self.rank == 0 else None)
        self.texts.forget()
        return weights

    def _verdict_is_missing(self) -> bool:
        plan = self.progress.plan
        return plan is not None and self.registry.verdict(plan.version) == "candidate"

    def _next_plan(self) -> Plan | None:
        """Wait for work; None = stop."""
        while True:
            decision = None
            if self.rank == 0:
                stop = self.stop_requested()
                plan = None if stop else self.scout.look()
                decision = (stop, plan, self.scout.catalog if plan else None)
            stop, plan, catalog = self.agree(decision)
            if stop:
                return None
            if plan is not None:
                self.catalog = catalog
                return plan  # type: ignore[no-any-return]
            if self.rank == 0:  # the others wait in the next broadcast
                wait_for_file(self.data_dir / "learner" / STOP_FILE, self.settings.poll_interval_s)

    def _catch_up_with_registry(self) -> None:
        """Go on from what is being served where that is not what the engine holds."""
        current = self.agree(self.registry.current())
        self.carried = encoder_of(self.registry.path(current)) if current else None
        if current is None or current == self.progress.weights_of:
            return
        bundle = load_bundle(self.registry.path(current))
        progress = self.progress
        progress.shape = bundle.config.model_dump()
        progress.slots = ItemSlots(bundle.config.id_capacity)
        hashes = np.concatenate([bundle.item_hashes, bundle.history_hashes])
        slots = np.concatenate([bundle.item_slots, bundle.history_slots])
        progress.tuned = self.settings.tuned
        progress.slots.place(hashes[slots >= 0], slots[slots >= 0], tick=progress.number)
        if self.texts is not None:
            self.texts.start_from(bundle.encoder)
        self._build_engine(progress, bundle.model.state_dict())
        progress.weights_of = current
        log.info("training goes on from the weights of %s", current)

    def _train(self, plan: Plan) -> bool:
        """Train one round; False = stopped in the middle, nothing kept."""
        self.status.update(
            phase="loading",
            detail=f"reading {len(plan.train)} windows for {plan.version}",
            window=iso(plan.train[-1]),
        )
        new = limited(self._read(plan.train), self.progress.popularity, self.settings.influence)
        if self.settings.gan.enabled:
            generated = augmented(new, self.settings.gan, self.settings.seed) if self.rank == 0 else None
            new = self.agree(generated)
        old = self._read(plan.replay) if plan.replay else None
        self._refresh_table(new, old)
        if self.table is None:
            raise AssertionError("a table is built above")
        figures = fit_round(self, plan, new, old, self.table)
        if self.texts is not None:
            self.texts.forget()
        if figures is None:
            return False
        self.progress.finish(plan, new, figures)
        return True

    def _read(self, starts: tuple[int, ...], *, together: bool = True) -> Sequences:
        """Windows as they may be learned from; ``together``: every rank asks, and takes rank 0's view of trust."""
        available = {w.start_ms: w for w in self._windows()}
        missing = [iso(start) for start in starts if start not in available]
        if missing:
            raise LearnerError(
                f"windows that were complete are gone: {missing}; put the files back under windows/"
            )
        counts = [worth(self.data_dir, available[start]) for start in starts] if self.rank == 0 else None
        if together:
            counts = self.agree(counts)
        return concat(
            [
                trusted_window(self.data_dir, available[start], count)
                for start, count in zip(starts, counts or [], strict=True)
            ]
        )

    def _windows(self) -> list[Any]:
        return list(complete_windows(self.data_dir / "windows", self.streaming.logical_shards))

    def _refresh_table(self, new: Sequences, old: Sequences | None) -> None:
        """The items of this round, the same on every rank; slots that changed hands start over."""
        progress = self.progress
        if not progress.shape:
            width = self.catalog.vectors.shape[1] or self.settings.model.text_dim
            shape = {"text_dim": width, "num_types": len(self.streaming.event_types)}
            progress.shape = self.settings.model.model_copy(update=shape).model_dump()
        recycled = progress.slots.touch(new.items, tick=progress.number + 1)
        if self.engine is not None and progress.shape["num_types"] < len(self.streaming.event_types):
            self._learn_more_types()
        if self.engine is None:
            progress.tuned = self.settings.tuned
            free = np.flatnonzero(progress.slots.hashes == 0)  # their items come in later rounds
            self._build_engine(progress, text_weights=self._pretrained(), blank=free)
        elif len(recycled):
            weights = self.agree(engines.full_weights(self.engine))
            self._build_engine(progress, weights, engines.tower_weights(self.engine), recycled)
        if self.texts is not None:
            self.texts.encode(self.engine, self.catalog)
        seen = [new.items, progress.slots.hashes, *([old.items] if old is not None else [])]
        self.table = self.make_table(np.concatenate(seen))

    def _learn_more_types(self) -> None:
        """Make room for event types that came after the model was made; like in serving they are the first one."""
        progress, known = self.progress, int(self.progress.shape["num_types"])
        progress.shape = progress.shape | {"num_types": len(self.streaming.event_types)}
        weights = self.agree(engines.full_weights(self.engine))
        table = weights["type_embedding.weight"]
        first = table[:1].expand(len(self.streaming.event_types) - known, -1)
        weights["type_embedding.weight"] = torch.cat([table, first])
        self._build_engine(progress, weights, engines.tower_weights(self.engine))
        log.info("event types %s are learned from now on", ", ".join(self.streaming.event_types[known:]))

    def make_table(self, seen: np.typing.NDArray[np.uint64]) -> ItemTable:
        """The catalogue of this round and every other item of ``seen``."""
        catalog, vectors = self.catalog, self.catalog.vectors
        if self.texts is not None:
            vectors = self.texts.vectors
        elif self.carried is not None:  # the catalogue may still be on its way to that encoder
            vectors = catalog.of_encoder(self.carried.fingerprint).vectors
        width = int(self.progress.shape["text_dim"])
        return build_table(self.progress.slots, catalog.hashes, catalog.ids, vectors, seen, width)

    def _report(self, plan: Plan) -> None:
        """Make the round durable (steps 1 and 2 of the module's docstring)."""
        import ray.train
        from ray.train import CheckpointConsistencyMode

        with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
            self.engine.save_checkpoint(folder, tag="engine")
            if self.rank == 0:
                self.progress.save(Path(folder))
            checkpoint = ray.train.Checkpoint.from_directory(folder)
            metrics = {"version": plan.version, **self.progress.training}
            ray.train.report(metrics, checkpoint=checkpoint)
        # report() returns before the controller has taken the checkpoint in; only then may others rely on it.
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        self.status.update(error=None)
        if self.rank == 0:
            self._record(plan)

    def _record(self, plan: Plan) -> None:
        path = self.data_dir / "learner" / "trained.jsonl"
        known = path.read_text().splitlines() if path.exists() else []
        if any(json.loads(line)["version"] == plan.version for line in known if line.endswith("}")):
            return
        windows = [iso(start) for start in plan.train]
        line = {"version": plan.version, "windows": windows, "step": self.progress.step, "at": time.time()}
        append_line(path, line)
        for start in plan.train:
            telemetry.WINDOWS.labels("skipped" if self.scout.found_empty(start) else "trained").inc()

    def _judge(self, plan: Plan) -> None:
        """Steps 3 and 4; then every rank knows what to go on from."""
        weights = engines.full_weights(self.engine)
        text_weights = engines.tower_weights(self.engine)
        if self.texts is not None:
            self.catalog = self.agree(self.catalog)  # after a restart every worker has read its own
            self.texts.encode(self.engine, self.catalog)
        if self.rank == 0:
            self._record(plan)
            self.status.update(
                phase="judging", detail=f"{plan.version} on {iso(plan.exam[-1])}", progress=0.0
            )
            with tempfile.TemporaryDirectory(prefix="headrace-") as folder:
                encoder = self.carried
                if self.texts is not None and text_weights is not None:
                    encoder = self.texts.save(text_weights, Path(folder) / "encoder")
                settle(self, plan, weights, self._read(plan.exam, together=False), encoder)
            self.status.update(**self.registry.counts())
        self.agree(None)  # nobody goes on before the verdict stands
        self._set_pace()
        self.status.update(phase="waiting", detail="waiting for a new window", progress=0.0, eta_s=None)

    def _set_pace(self) -> None:
        """All threads for the first model; once something is served, leave the machine to those who serve."""
        serving = self.registry.current() is not None
        own = max(1, (os.cpu_count() or 1) // self.world)
        torch.set_num_threads(self.settings.threads if serving else self.settings.initial_threads or own)
        if serving:
            make_nice(self.settings.nice)
