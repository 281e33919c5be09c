"""Folds the files of ended processes into an archive, so that totals never go down and files stay few.

Per kind (counter, histogram) there is one archive, and it has a generation. To fold: (1) each file of an ended
process is renamed to name the next generation, N+1; (2) the archive N and those files are added up in a new file,
which is renamed to archive N+1; (3) the others are removed. What counts follows from the names alone
(`streaming.exposition.counted`): up to the rename in (2) that is archive N and the files beside it, from then on
archive N+1. So wherever this is cut off, nothing counts twice and nothing is lost.
"""

import fcntl
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from prometheus_client.mmap_dict import MmapedDict

from streaming.exposition import ARCHIVE, MetricFile, alive, files_of, values_of

_FOLDED = ("counter", "histogram")


class MetricArchive:
    """The archive of one folder; several may be asked to fold, one of them at a time does.

    Args:
        folder: of the files of metrics.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = folder / ".folding"

    def fold(self) -> int:
        """Take in the files of all processes that ended; returns how many files were taken in or dropped."""
        with self._lock.open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # another exporter is at it
                return 0
            return self._fold()

    def _fold(self) -> int:
        files = files_of(self._folder)
        ended = [file for file in files if not file.generation and not alive(file.process)]
        for file in ended:
            if file.kind not in _FOLDED or not file.ours:
                file.path.unlink(
                    missing_ok=True
                )  # a gauge ends with its process; others' files are nothing to us
        for kind in _FOLDED:
            self._fold_kind(
                kind,
                [file for file in files if file.kind == kind and file.generation],
                [file for file in ended if file.kind == kind and file.ours],
            )
        return len(ended)

    def _fold_kind(self, kind: str, earlier: Sequence[MetricFile], ended: Sequence[MetricFile]) -> None:
        """Fold what ended of one kind, and finish what an earlier fold began."""
        archives = {file.generation: file for file in earlier if file.process == ARCHIVE}
        newest = max(archives, default=0)
        waiting = [file for file in earlier if file.generation > newest]
        waiting += [self._set_aside(file, newest + 1) for file in ended]
        if waiting:
            current = [archives[newest]] if newest else []
            self._write([*current, *waiting], f"{kind}_{ARCHIVE}.{newest + 1}")
        done = set(earlier) | set(waiting)
        if not waiting and newest:
            done.remove(archives[newest])
        for file in done:
            file.path.unlink(missing_ok=True)

    @staticmethod
    def _set_aside(file: MetricFile, generation: int) -> MetricFile:
        """Step 1."""
        target = file.path.with_name(f"{file.kind}_{file.process}.{generation}.db")
        file.path.rename(target)
        return MetricFile(target, file.kind, file.mode, file.process, generation)

    def _write(self, parts: Iterable[MetricFile], name: str) -> None:
        """Step 2."""
        totals: dict[str, float] = defaultdict(float)
        for file in parts:
            for key, value, _ in values_of(file):
                totals[key] += value
        making = self._folder / f"{name}.tmp"
        making.unlink(missing_ok=True)
        target = MmapedDict(str(making))  # type: ignore[no-untyped-call]
        try:
            for key, value in totals.items():
                target.write_value(key, value, 0.0)  # type: ignore[no-untyped-call]
        finally:
            target.close()  # type: ignore[no-untyped-call]
        os.replace(making, self._folder / f"{name}.db")
