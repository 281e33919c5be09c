"""The continuous learner as one object: start it, ask it, stop it.

`Learner.run` is a single Ray Train run that lasts as long as the product does; Ray Train restarts its workers
from the last checkpoint when one dies. Importing this module loads neither torch nor Ray.
"""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

from streaming.config import StreamingSettings
from streaming.logs import installed
from training.config import TrainingSettings
from training.status import read_status, write_status

__all__ = ["Learner", "read_status", "request_stop"]

log = logging.getLogger("headrace.training")
RUN_NAME = "continuous"


def request_stop(data_dir: Path) -> None:
    """Ask the learner of this data directory to end cleanly; any process may."""
    folder = Path(data_dir) / "learner"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "stop").touch()


class Learner:
    """Runs the loop of `training.loop`; made to be a Ray actor with ``max_concurrency`` of at least 2.

    Args:
        data_dir: the product's data directory, the same path on every node that may run a worker.
        streaming: shards, sequence length and event types of the state.
        training: everything else.
    """

    def __init__(self, data_dir: Path, streaming: StreamingSettings, training: TrainingSettings) -> None:
        if training.model.length > streaming.sequence_length:
            raise ValueError(
                f"training.model.length must be at most streaming.sequence_length = {streaming.sequence_length}; got "
                f"{training.model.length}"
            )
        self.data_dir = Path(data_dir).resolve()
        self.streaming, self.training = streaming, training
        self._running = threading.Lock()
        (self.data_dir / "learner").mkdir(parents=True, exist_ok=True)
        (self.data_dir / "learner" / "stop").unlink(missing_ok=True)

    def run(self) -> dict[str, Any]:
        """Train until a stop is requested; returns the last status.

        A supervisor that replaced another asks again; the call then waits for the run that is under way.

        Raises:
            ray.train.TrainingFailedError: workers failed more often than ``max_failures``.
        """
        if not self._running.acquire(blocking=False):
            with self._running:
                return self.status()
        try:
            self._trainer().fit()
        except Exception as error:
            log.exception("the learner failed")
            write_status(self.data_dir, {**self.status(), "phase": "failed", "error": str(error)[:2000]})
            raise
        finally:
            self._running.release()
        return self.status()

    def status(self) -> dict[str, Any]:
        """What `learner/status.json` says."""
        return read_status(self.data_dir)

    def stop(self) -> None:
        """Ask for a clean end; `run` returns once the workers have let go, within a step or a judgement."""
        request_stop(self.data_dir)

    def _trainer(self) -> Any:
        from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        from training.loop import train_loop

        # How soon Ray Train sees a dead worker and takes in a checkpoint; its own default is 2 s.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        settings = self.training
        return TorchTrainer(
            train_loop,
            train_loop_config={
                "data_dir": str(self.data_dir),
                "streaming": self.streaming.model_dump(mode="json"),
                "training": settings.model_dump(mode="json"),
                "log": logs.model_dump() if (logs := installed()) else None,
            },
            torch_config=TorchConfig(backend="nccl" if settings.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=settings.num_workers,
                use_gpu=settings.use_gpu,
                resources_per_worker={
                    "CPU": settings.cpus_per_worker,
                    **({"GPU": 1} if settings.use_gpu else {}),
                },
            ),
            run_config=RunConfig(
                name=RUN_NAME,
                storage_path=str(self.data_dir / "learner"),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=settings.keep_checkpoints),
            ),
        )
