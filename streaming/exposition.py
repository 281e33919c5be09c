"""Puts together what the processes of a node keep in their files of metrics, as the text that Prometheus reads.

Counters and histograms are sums over all processes that ever ran: of the living, of those that ended, and of the
archive that an exporter folds the latter into (`services.metric_archive`). Gauges are of the living only. What other
programs keep in the folder, such as Ray itself, is left out.

Cost: about 3 µs for a value in a file, some 10 ms for a dozen processes; keys are parsed once.
"""

import functools
import json
import math
import re
import struct
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.utils import floatToGoString

from streaming.meters import MOMENT, started

PREFIX = "headrace_"
# gauges that name something by a label; the names that went are at 0, since files cannot forget
HIDDEN_AT_ZERO = frozenset({"headrace_model_info", "headrace_learner_phase", "headrace_experiment_share"})
ARCHIVE = "archive"  # stands for the processes whose files were folded into one
_NAME = re.compile(
    rf"(counter|histogram|summary|gauge)(?:_([a-z]+))?_({ARCHIVE}|\d+(?:-\d+)?)(?:\.(\d+))?\.db"
)
_TRIES = 5

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class MetricFile:
    """A file of metrics.

    Attributes:
        kind: counter, histogram, summary or gauge. mode: how gauges of several processes are put together.
        process: whose it is, see `streaming.meters.identity`; ARCHIVE: of many.
        generation: of an archive, or of the one that a file of an ended process goes into; 0 otherwise.
    """

    path: Path
    kind: str
    mode: str
    process: str
    generation: int

    @classmethod
    def of(cls, path: Path) -> "MetricFile | None":
        """Read off the name; None where it is none."""
        match = _NAME.fullmatch(path.name)
        if match is None or (match[1] == "gauge") != bool(match[2]):
            return None
        return cls(path, match[1], match[2] or "", match[3], int(match[4] or 0))

    @property
    def ours(self) -> bool:
        """Whether a process of Headrace may have written it: those are named by id and start."""
        return self.process == ARCHIVE or "-" in self.process


def alive(process: str) -> bool:
    """Whether the process of that name runs."""
    pid, _, start = process.partition("-")
    now = started(int(pid))
    return now is not None and start in ("", now)


def files_of(folder: Path) -> list[MetricFile]:
    """All files of metrics, whether they count or not; none where there is no such folder."""
    try:
        found = [MetricFile.of(path) for path in folder.iterdir()]
    except FileNotFoundError:
        return []
    return [file for file in found if file is not None]


def counted(folder: Path) -> frozenset[MetricFile]:
    """The files that count now: a fold that was cut off anywhere makes nothing count twice, or not at all."""
    files = [file for file in files_of(folder) if file.ours]
    archives: dict[str, int] = defaultdict(int)
    for file in files:
        if file.process == ARCHIVE:
            archives[file.kind] = max(archives[file.kind], file.generation)
    running = functools.cache(alive)

    def counts(file: MetricFile) -> bool:
        if file.kind == "gauge":
            return running(file.process)
        if file.process == ARCHIVE:
            return file.generation == archives[file.kind]
        return not file.generation or file.generation > archives[file.kind]  # else it is in the archive

    return frozenset(filter(counts, files))


def values_of(file: MetricFile) -> Iterator[tuple[str, float, float]]:
    """(key, value, timestamp) of Headrace's metrics in a file; nothing of one that is just being made.

    Raises:
        FileNotFoundError: it has gone.
    """
    try:
        for key, value, timestamp, _ in MmapedDict.read_all_values_from_file(str(file.path)):  # type: ignore[no-untyped-call]
            if key.startswith(f'["{PREFIX}'):
                yield key, value, timestamp
    except (struct.error, RuntimeError, UnicodeDecodeError):
        return


def collect(folder: Path) -> list[Metric]:
    """The metrics of this node."""
    for _ in range(_TRIES):  # a fold meanwhile renames files, and a listing may have missed one: read again
        files, merged = counted(folder), _Merged(time.time())
        try:
            for file in files:
                merged.add(file)
        except FileNotFoundError:
            continue
        if _totals(files) == _totals(counted(folder)):
            break
    return merged.metrics()


def _totals(files: Iterable[MetricFile]) -> set[MetricFile]:
    return {file for file in files if file.kind != "gauge"}


def text(folder: Path) -> bytes:
    """The metrics of this node in Prometheus's text format."""
    return generate_latest(_Registry(folder))


class _Registry(CollectorRegistry):
    """What `generate_latest` asks."""

    def __init__(self, folder: Path) -> None:
        super().__init__(auto_describe=False)
        self._folder = folder

    def collect(self) -> Iterable[Metric]:
        return collect(self._folder)


@functools.lru_cache(maxsize=50_000)
def _parse(key: str) -> tuple[str, str, Labels, str]:
    """Family, sample, labels and help of a key, as `prometheus_client.mmap_dict.mmap_key` writes it."""
    family, sample, labels, documentation = json.loads(key)
    return family, sample, tuple(sorted(labels.items())), documentation


class _Merged:
    """Values of several files, added up.

    Args:
        now: epoch s, from which ages are counted.
    """

    def __init__(self, now: float) -> None:
        self._now = now
        self._families: dict[str, tuple[str, str]] = {}  # kind and help
        self._samples: dict[str, dict[tuple[str, Labels], float]] = defaultdict(dict)
        self._written_at: dict[tuple[str, Labels], float] = {}

    def add(self, file: MetricFile) -> None:
        for key, value, timestamp in values_of(file):
            family, sample, labels, documentation = _parse(key)
            self._families[family] = file.kind, documentation
            samples, name = self._samples[family], (sample, labels)
            if file.kind != "gauge":
                samples[name] = samples.get(name, 0.0) + value
            elif not math.isnan(value):
                self._add_gauge(samples, name, value, timestamp, file.mode)

    def _add_gauge(
        self,
        samples: dict[tuple[str, Labels], float],
        name: tuple[str, Labels],
        value: float,
        timestamp: float,
        mode: str,
    ) -> None:
        if mode == "livesum":
            samples[name] = samples.get(name, 0.0) + value
        elif mode == "livemax":
            samples[name] = max(samples.get(name, value), value)
        elif mode == MOMENT:
            if value:
                age = max(0.0, self._now - value)
                samples[name] = max(samples.get(name, age), age)
        elif timestamp > self._written_at.get(name, 0.0):  # livemostrecent; 0: never set
            samples[name], self._written_at[name] = value, timestamp

    def metrics(self) -> list[Metric]:
        return [self._metric(family) for family in sorted(self._families)]

    def _metric(self, family: str) -> Metric:
        kind, documentation = self._families[family]
        metric = Metric(family, documentation, kind)
        samples = sorted(self._samples[family].items())
        if kind == "histogram":
            _add_histogram(metric, samples)
            return metric
        for (sample, labels), value in samples:
            if value or family not in HIDDEN_AT_ZERO:
                metric.add_sample(sample, dict(labels), value)
        return metric


def _as_text(bound: float) -> str:
    return str(floatToGoString(bound))  # type: ignore[no-untyped-call]


def _add_histogram(metric: Metric, samples: list[tuple[tuple[str, Labels], float]]) -> None:
    """In the files buckets stand each for itself; they are shown added up, with their count."""
    buckets: dict[Labels, dict[float, float]] = defaultdict(dict)
    sums: dict[Labels, float] = {}
    for (_, labels), value in samples:
        bound = dict(labels).get("le")
        if bound is None:
            sums[labels] = value
        else:
            rest = tuple(pair for pair in labels if pair[0] != "le")
            buckets[rest][float(bound)] = value
    for labels, by_bound in buckets.items():
        total, names = 0.0, dict(labels)
        for upper, value in sorted(by_bound.items()):
            total += value
            metric.add_sample(f"{metric.name}_bucket", names | {"le": _as_text(upper)}, total)
        metric.add_sample(f"{metric.name}_count", names, total)
        metric.add_sample(f"{metric.name}_sum", names, sums.get(labels, 0.0))
