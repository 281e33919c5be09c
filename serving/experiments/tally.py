"""What came of the rankings of a canary and of its control: counts and durations, summed over replicas.

Durations are kept apart by how many requests were ranked together, since a batch takes longer than one and the arm
with more users has the larger batches; only like is compared with like. A duration stands in a bucket a tenth wide.
Replicas count from the beginning of a stage and write their counts into small files of the registry's folder, which
the supervisor sums (`services.canary`); a file of another stage counts nothing, so nobody has to reset anything.
"""

import json
import math
import os
import threading
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]

FOLDER = ".replicas"  # of the registry's folder

_SIZES = (1, 4, 16)  # requests ranked together: 1, up to 4, up to 16, more
_FINEST_MS, _RATIO = 0.05, 1.1
_EDGES_MS = tuple(_FINEST_MS * _RATIO**step for step in range(150))  # up to 74 s
_LEAST = 100  # durations that a percentile is taken from


class Tally:
    """Counts of one arm; not thread-safe.

    Attributes:
        requests: rankings asked of it. errors: those that raised or gave no finite scores.
        durations: (sizes, buckets) of those that went well.
    """

    def __init__(self) -> None:
        self.requests = self.errors = 0
        self.durations: Counts = np.zeros((len(_SIZES) + 1, len(_EDGES_MS) + 1), np.int64)

    def add(self, together: int, duration_s: float) -> None:
        """Take in requests that were ranked together and took this long."""
        self.requests += together
        bucket = bisect_left(_EDGES_MS, duration_s * 1000)
        self.durations[bisect_left(_SIZES, together), bucket] += together

    def fail(self) -> None:
        """Take in a request that could not be ranked."""
        self.requests += 1
        self.errors += 1

    def p99_ms(self) -> float | None:
        """99th percentile over all, ms, up to a tenth too high; None where too few went well."""
        return _percentile(self.durations.sum(0))

    def slower_than(self, control: "Tally", tolerance: float, slack_ms: float) -> tuple[int, int]:
        """How many requests took longer than the control's 99th percentile with tolerance, and of how many.

        Sizes of which the control has too few to tell are left out.
        """
        slow = known = 0
        for mine, theirs in zip(self.durations, control.durations, strict=True):
            p99_ms = _percentile(theirs)
            if p99_ms is not None:
                limit_ms = max(p99_ms * (1 + tolerance), p99_ms + slack_ms)
                slow += int(mine[bisect_left(_EDGES_MS, limit_ms) + 1 :].sum())  # buckets wholly above
                known += int(mine.sum())
        return slow, known

    def document(self) -> dict[str, Any]:
        """As it stands in a file: what is not zero."""
        places = np.argwhere(self.durations)
        counts = self.durations[places[:, 0], places[:, 1]]
        spread = np.column_stack([places, counts]).tolist()
        return {"requests": self.requests, "errors": self.errors, "durations": spread}

    def take_in(self, document: dict[str, Any]) -> None:
        """Add what a file says."""
        self.requests += int(document["requests"])
        self.errors += int(document["errors"])
        for size, bucket, count in document["durations"]:
            self.durations[size, bucket] += count


def _percentile(counts: Counts) -> float | None:
    total = int(counts.sum())
    if total < _LEAST:
        return None
    bucket = int(np.searchsorted(np.cumsum(counts), math.ceil(0.99 * total)))
    return _EDGES_MS[min(bucket, len(_EDGES_MS) - 1)]


class Figures:
    """Both arms of a trial, in one replica or in all.

    Attributes:
        failed: why a replica cannot load the canary's version.
    """

    def __init__(self) -> None:
        self.canary, self.control = Tally(), Tally()
        self.failed: str | None = None
        self.replicas = 0

    def take_in(self, document: dict[str, Any]) -> Self:
        """Add what a replica says."""
        self.canary.take_in(document["canary"])
        self.control.take_in(document["control"])
        self.failed = self.failed or document["failed"]
        self.replicas += 1
        return self


class Reporter:
    """Counts in one replica, and its file; thread-safe.

    Args:
        models_dir: the registry's folder. replica: names the file, different in each replica.
    """

    def __init__(self, models_dir: Path, replica: str) -> None:
        self._path = models_dir / FOLDER / f"{replica}.json"
        self._lock = threading.Lock()
        self._trial: str | None = None
        self._figures = Figures()
        self._written: tuple[object, ...] = ()

    def follow(self, trial: str | None, failed: str | None) -> None:
        """Begin anew where another trial is on; `failed` says why its version cannot be loaded."""
        with self._lock:
            if trial != self._trial:
                self._trial, self._figures = trial, Figures()
            self._figures.failed = failed

    def add(self, canary: bool, together: int, duration_s: float) -> None:
        """See `Tally.add`."""
        with self._lock:
            (self._figures.canary if canary else self._figures.control).add(together, duration_s)

    def fail(self, canary: bool) -> None:
        """See `Tally.fail`."""
        with self._lock:
            (self._figures.canary if canary else self._figures.control).fail()

    def write(self) -> None:
        """Replace the file where there is something new to say."""
        with self._lock:
            figures = self._figures
            state = self._trial, figures.canary.requests, figures.control.requests, figures.failed
            if self._trial is None or state == self._written:
                return
            arms = {"canary": figures.canary.document(), "control": figures.control.document()}
            document = {"trial": self._trial, "failed": figures.failed, **arms}
        self._path.parent.mkdir(exist_ok=True)
        temporary = self._path.with_suffix(f".{os.getpid()}")
        temporary.write_text(json.dumps(document))
        temporary.replace(self._path)
        self._written = state


def gather(models_dir: Path, trial: str) -> Figures:
    """Sum what all replicas say of a trial, and remove files that speak of another one."""
    figures = Figures()
    for path, document in _files(models_dir):
        if document["trial"] == trial:
            figures.take_in(document)
        else:
            path.unlink(missing_ok=True)
    return figures


def _files(models_dir: Path) -> Iterable[tuple[Path, dict[str, Any]]]:
    for path in sorted((models_dir / FOLDER).glob("*.json")):
        try:
            yield path, json.loads(path.read_bytes())
        except FileNotFoundError:  # its replica has replaced or removed it in between
            continue
