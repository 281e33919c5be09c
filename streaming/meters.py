"""How metrics are kept: in this process, or in files that an exporter adds up over all processes of a node.

Where `PROMETHEUS_MULTIPROC_DIR` is set before prometheus_client is imported, each process keeps its values in
memory maps of that folder (its multiprocess mode), and `streaming.exposition` merges them. A process is named there
by its id *and* its start, as ids are used again. Elsewhere everything stays in the process.

Definitions take `Counter`, `Gauge` and `Histogram` from here, so that these choices are made before the first of
them. In the files nothing can be removed and no function be called at a scrape; `retire` and `since` are for that.
"""

import functools
import logging
import math
import os
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from prometheus_client import Counter, Gauge, Histogram, values

__all__ = [
    "FOLDER",
    "MOMENT",
    "Counter",
    "Gauge",
    "Histogram",
    "folder",
    "identity",
    "observe_many",
    "present",
    "retire",
    "since",
    "started",
]

log = logging.getLogger(__name__)

FOLDER = "PROMETHEUS_MULTIPROC_DIR"
# Gauges of this mode hold a moment (epoch s), 0 for none yet; they are shown as the time since the oldest one.
MOMENT: Final = "livemin"


def started(pid: int) -> str | None:
    """When a process started, in clock ticks since the machine did; None where it does not run (any more)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else fields[18]  # a zombie tells nothing any more


@functools.lru_cache(maxsize=8)
def identity(pid: int) -> str:
    """Name of a running process that no other one will ever have, `PID-START`."""
    return f"{pid}-{started(pid) or 0}"


def _keep_in_files() -> Path | None:
    """Where this process keeps its values; None: in itself.

    A folder that cannot be used costs the metrics of this process, and nothing else.
    """
    if not getattr(values.ValueClass, "_multiprocess", False):
        return None
    path = Path(os.environ[FOLDER])
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(f"{path} is not writable")
    except OSError as error:
        log.warning("%s: metrics of this process stay in it: %s", FOLDER, error)
        values.ValueClass = values.MutexValue  # type: ignore[assignment,misc]
        return None
    # as prometheus_client's own documentation does for uWSGI
    values.ValueClass = values.MultiProcessValue(lambda: identity(os.getpid()))  # type: ignore[misc,no-untyped-call]
    return path


_FOLDER = _keep_in_files()


def folder() -> Path | None:
    """Where the processes of this node keep their values; None where this one keeps its own."""
    return _FOLDER


def observe_many(histogram: Histogram, amounts: npt.NDArray[Any]) -> None:
    """Take in many observations at the price of one search, and of one write per bucket that they fall into.

    Args:
        histogram: one without labels, or a child.
        amounts: (N,) finite numbers.
    """
    if not len(amounts):
        return
    histogram._sum.inc(float(amounts.sum()))
    bounds, buckets = histogram._upper_bounds, histogram._buckets
    counts = np.bincount(np.searchsorted(bounds, amounts), minlength=len(bounds))
    for place in np.flatnonzero(counts).tolist():
        buckets[place].inc(int(counts[place]))


def since(gauge: Gauge, moment_s: float | None) -> None:
    """Have a gauge of mode `MOMENT` show the time since a moment (epoch s), right at every scrape; None: nothing."""
    if _FOLDER is None:
        gauge.set_function(lambda: math.nan if moment_s is None else time.time() - moment_s)
    else:
        gauge.set(0 if moment_s is None else moment_s)


def retire(metric: Counter | Gauge | Histogram, *labels: str) -> None:
    """Take a series out of what is shown.

    In the files a gauge becomes 0, which hides a series of those named in `streaming.exposition.HIDDEN_AT_ZERO`;
    what a counter or histogram has counted stays.
    """
    if isinstance(metric, Gauge):
        metric.labels(*labels).set(0)
    with warnings.catch_warnings():  # of the files it says itself that they keep what was written
        warnings.simplefilter("ignore", UserWarning)
        metric.remove(*labels)


def present(gauge: Gauge, shown: Mapping[Any, float]) -> None:
    """Make a gauge show these series, by tuples of the values of their labels, and retire its others."""
    with gauge._lock:
        gone = set(gauge._metrics) - set(shown)
    for labels in gone:
        retire(gauge, *labels)
    for labels, value in shown.items():
        gauge.labels(*labels).set(value)
