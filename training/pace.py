"""How a worker shares a machine: priority and waiting."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path


def make_nice(nice: int) -> None:
    """Lower the priority of every thread of this process (Linux keeps niceness per thread); never raises it."""
    if not hasattr(os, "setpriority"):
        return
    tasks = Path("/proc/self/task")
    threads = [int(task.name) for task in tasks.iterdir()] if tasks.is_dir() else [0]
    for thread in threads:
        try:
            if os.getpriority(os.PRIO_PROCESS, thread) < nice:
                os.setpriority(os.PRIO_PROCESS, thread, nice)
        except ProcessLookupError:
            continue  # the thread ended meanwhile


def wait_for_file(path: Path, seconds: float) -> None:
    """Wait out a poll interval, less if ``path`` appears."""
    pause = threading.Event()
    deadline = time.monotonic() + seconds
    while not path.exists() and (left := deadline - time.monotonic()) > 0:
        pause.wait(min(left, 0.2))
