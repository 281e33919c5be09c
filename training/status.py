"""What the learner is doing, as a small file that anybody may read: `learner/status.json`.

Rank 0 keeps it: a thread rewrites it twice a second (atomically), so that a long judgement or a slow step never looks
like a dead learner. `updated_at` is wall-clock epoch seconds.
"""

from __future__ import annotations

import json
import os
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

Phase = Literal["waiting", "loading", "training", "judging", "stopped", "failed"]
INTERVAL_S = 0.4


def blank_status() -> dict[str, Any]:
    """Every field with its value before anything happened."""
    return {
        "phase": "waiting",
        "detail": "the learner has not started",
        "progress": 0.0,
        "eta_s": None,
        "step": 0,
        "total_steps": 0,
        "loss": None,
        "adversarial_loss": None,
        "window": None,
        "trained": 0,
        "promoted": 0,
        "rejected": 0,
        "updated_at": 0.0,
        "pid": None,
        "error": None,
    }


def status_path(data_dir: Path) -> Path:
    """Where the file lies under a data directory."""
    return Path(data_dir) / "learner" / "status.json"


def read_status(data_dir: Path) -> dict[str, Any]:
    """The learner's status; :func:`blank_status` if there is none yet."""
    try:
        stored: dict[str, Any] = json.loads(status_path(data_dir).read_text())
    except FileNotFoundError:
        return blank_status()
    return {**blank_status(), **stored}


def write_status(data_dir: Path, status: dict[str, Any]) -> None:
    """Replace the file atomically, stamping ``updated_at``."""
    path = status_path(data_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".status-{os.getpid()}-{threading.get_ident()}")
    temporary.write_text(json.dumps({**status, "updated_at": time.time()}))
    os.replace(temporary, path)


class StatusWriter:
    """Keeps the file fresh while in use (a context manager); `update` merges fields, from any thread."""

    def __init__(self, data_dir: Path, enabled: bool = True) -> None:
        self._data_dir = data_dir
        self._enabled = enabled
        self._lock = threading.Lock()
        self._fields = {
            **read_status(data_dir),
            "pid": os.getpid(),
        }  # the error of a crash stays readable until a round succeeds
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, name="learner-status", daemon=True)

    def __enter__(self) -> StatusWriter:
        if self._enabled:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
            self._done.set()
            self._thread.join(timeout=5.0)
            self._write()

    def update(self, **fields: Any) -> None:
        """Merge fields; a change of phase is written at once, the rest within the interval."""
        with self._lock:
            changed = "phase" in fields and fields["phase"] != self._fields["phase"]
            self._fields.update(fields)
        if changed and self._enabled:
            self._write()

    def _run(self) -> None:
        while not self._done.wait(INTERVAL_S):
            self._write()

    def _write(self) -> None:
        with self._lock:
            fields = dict(self._fields)
        write_status(self._data_dir, fields)
