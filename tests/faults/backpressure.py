"""One shard actor stands still for 30 s under full input: what does every process hold meanwhile?

A shard that does not answer stops the ingestors: each has at most `pipeline_depth` micro-batches under way, holds
up to `batch_records` more and what one poll brought on top, and reads no further. So what a process may hold beyond
what it takes at rest follows from the settings:

ingestor  what the client has fetched, 1 MiB per partition and fetch: a fetch being read, one that waits, one that
          comes in, and a copy while it is put together (4 x 1 MiB x its partitions); the records that it holds,
          1 kB each beside their own size; one micro-batch being decoded, 3 times its size; those under way
shard     the micro-batches that ingestors have under way; rows before and after, and the pages of LMDB that one
          batch touches (two of 4 KiB, twice, per event at most); the largest window, as it is written

and 32 MiB each for what is not ours to bound: the arenas of allocators, the buffers of Ray's and Kafka's clients.
The object store holds micro-batches: those under way, and as many again that were sent before a rewind. A micro-batch
takes 96 bytes per event. None of this grows with the length of the pause, nor with what waits in the topic.

Measured is resident memory less shared pages: LMDB's map and Ray's object store are files that processes map, and the
kernel counts a page of them as resident in each; the object store is looked at by itself.
"""

import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from services.settings import Settings
from streaming.broker import EmbeddedBroker
from streaming.kafka import FETCH_BYTES_PER_PARTITION, ensure_topics
from streaming.rows import row_dtype
from streaming.state import open_store
from tests.faults.flood import RECORD_BYTES, RECORDS_PER_WINDOW, Flood, Sampler, object_store_bytes
from tests.faults.log import Logged, ends, read_log
from tests.faults.pipeline import Pipeline, settings_for, wait_until
from tests.faults.truth import name

MIB = 1024 * 1024
_EVENT_BYTES, _OBJECT_BYTES, _UNBOUND_BYTES, _PAGE_BYTES = 96, 1024, 32 * MIB, 4096
_WARM_UP_RECORDS = 5000
_SIZES = {"batch_records": 2500, "pipeline_depth": 3}
_BEFORE_S, _AFTER_S = 3.0, 3.0  # full input around the pause
_DRAIN_TIMEOUT_S = 180.0


@dataclass(frozen=True)
class Bounds:
    """What a process may hold beyond its memory at rest, and the object store in all; bytes, but for the last."""

    ingestor: int
    shard: int
    object_store: int
    taken: int  # records that ingestors send on to a shard that does not answer

    @classmethod
    def of(cls, settings: Settings) -> "Bounds":
        """Derive them from the settings, as the module says."""
        streaming = settings.streaming
        partitions = -(-settings.kafka.partitions // streaming.ingestors)
        batch, row = streaming.batch_records, row_dtype(streaming).itemsize
        most = 2 * batch  # a poll brings up to a batch, and what waited before it was just short of one
        held = most * (RECORD_BYTES + _OBJECT_BYTES)
        under_way = (streaming.pipeline_depth + 1) * most * _EVENT_BYTES
        fetched = 4 * FETCH_BYTES_PER_PARTITION * partitions
        window = RECORDS_PER_WINDOW * (64 + row)
        return cls(
            ingestor=fetched + held + 3 * batch * RECORD_BYTES + under_way + _UNBOUND_BYTES,
            shard=streaming.ingestors * under_way
            + batch * (2 * row + 4 * _PAGE_BYTES)
            + window
            + _UNBOUND_BYTES,
            object_store=2 * streaming.ingestors * under_way,
            taken=streaming.ingestors * (streaming.pipeline_depth + 1) * most,
        )


@dataclass
class Pressure:
    """What was measured; memory in bytes, by process."""

    pause_s: float
    records: int = 0
    backlog_bytes: int = 0  # on the topic when the shard went on
    lag: int = 0  # records then
    rest: dict[str, int] = field(default_factory=dict)
    peak: dict[str, int] = field(default_factory=dict)
    early: dict[str, int] = field(default_factory=dict)  # a third into the pause
    late: dict[str, int] = field(default_factory=dict)  # at its end
    bound: dict[str, int] = field(default_factory=dict)
    object_store_peak: int = 0
    object_store_bound: int = 0
    taken: int = 0  # records that all ingestors sent on during the pause
    taken_bound: int = 0
    drained_s: float = 0.0
    lost: int = 0
    doubled: int = 0

    @property
    def ok(self) -> bool:
        """Nothing lost or doubled, and every process within its bound."""
        within = all(self.peak[process] <= self.bound[process] for process in self.bound)
        within &= self.object_store_peak <= self.object_store_bound and self.taken <= self.taken_bound
        return within and not self.lost and not self.doubled

    def report(self) -> dict[str, Any]:
        """As `make faults` writes it; memory in MiB."""
        return {
            "pause_s": self.pause_s,
            "records": self.records,
            "backlog_mib": _mib(self.backlog_bytes),
            "lag": self.lag,
            "processes": {
                process: {
                    "rest_mib": _mib(self.rest[process]),
                    "peak_mib": _mib(self.peak[process]),
                    "growth_in_pause_mib": _mib(self.late[process] - self.early[process]),
                    "bound_mib": _mib(self.bound[process]),
                }
                for process in self.bound
            },
            "object_store": {
                "peak_mib": _mib(self.object_store_peak),
                "bound_mib": _mib(self.object_store_bound),
            },
            "taken_in_pause": {"records": self.taken, "bound": self.taken_bound},
            "drained_s": round(self.drained_s, 1),
            "lost": self.lost,
            "doubled": self.doubled,
            "ok": self.ok,
        }


def press(
    folder: Path, tell: Callable[[str], None], pause_s: float = 30.0, input_mb: float = 300
) -> Pressure:
    """Pause one of two shard actors under full input in the Ray that is running.

    Args:
        folder: for everything that is stored.
        tell: is told how far it is.
        input_mb: what the producer sends in all, MB.

    Raises:
        TimeoutError: the stream did not drain.
    """
    with EmbeddedBroker() as broker:
        settings = settings_for(broker.bootstrap_servers, folder, "pressure", **_SIZES)
        ensure_topics(settings.kafka, [settings.streaming.events_topic])
        flood = Flood(settings, input_mb * 1e6 / (_BEFORE_S + pause_s + _AFTER_S))
        try:
            with Pipeline(settings) as pipeline:
                pressure = _press(pipeline, flood, pause_s, tell)
                log = read_log(settings.kafka, settings.streaming.events_topic)
                wait_until(lambda: pipeline.has_applied(ends(log)), 30, "the last records")
        finally:
            flood.close()
        pressure.records = sum(len(records) for records in log.values())
        _compare(pressure, settings, log)
        return pressure


def _press(pipeline: Pipeline, flood: Flood, pause_s: float, tell: Callable[[str], None]) -> Pressure:
    streaming = pipeline.settings.streaming
    tell("memory under backpressure: warming up")
    flood.send(_WARM_UP_RECORDS)
    flood.flush()
    wait_until(lambda: _applied(pipeline) >= _WARM_UP_RECORDS, 60, "the warm-up")
    names = [*pipeline.names("shard"), *pipeline.names("ingestor")]
    pids = {name.partition("-")[2]: pipeline.ask(name, "pid") for name in names}
    sampler, halt = Sampler(pids), threading.Event()
    bounds, pressure = Bounds.of(pipeline.settings), Pressure(pause_s, rest=sampler.now())
    for process, rest in pressure.rest.items():
        pressure.bound[process] = rest + (bounds.shard if process.startswith("shard") else bounds.ingestor)
    pressure.object_store_bound = object_store_bytes() + bounds.object_store
    pressure.taken_bound = bounds.taken
    paused = pids[f"shard-{streaming.shard_actors - 1}"]
    try:
        flood.start()
        halt.wait(_BEFORE_S)
        os.kill(paused, signal.SIGSTOP)
        sent_on = _sent_on(pipeline)
        try:
            tell(f"memory under backpressure: a shard actor stands still for {pause_s:.0f} s")
            halt.wait(pause_s / 3)
            pressure.early = sampler.now()
            halt.wait(pause_s * 2 / 3)
            pressure.late = sampler.now()
            pressure.taken = _sent_on(pipeline) - sent_on
        finally:
            os.kill(paused, signal.SIGCONT)
        resumed_at = time.monotonic()
        pressure.backlog_bytes, pressure.lag = flood.sent * RECORD_BYTES, flood.sent - _applied(pipeline)
        tell(f"memory under backpressure: {pressure.lag:,} records to drain")
        halt.wait(_AFTER_S)
        flood.stop()
        wait_until(lambda: _applied(pipeline) >= flood.sent, _DRAIN_TIMEOUT_S, "the lag's drain")
        pressure.drained_s = time.monotonic() - resumed_at
    finally:
        sampler.stop()
    pressure.peak, pressure.object_store_peak = dict(sampler.peak), sampler.object_store_peak
    return pressure


def _applied(pipeline: Pipeline) -> int:
    answers = [pipeline.ask(name, "stats") for name in pipeline.names("shard")]
    return sum(shard.applied for answer in answers for shard in answer or ())


def _sent_on(pipeline: Pipeline) -> int:
    answers = [pipeline.ask(name, "stats") for name in pipeline.names("ingestor")]
    return sum(answer.records for answer in answers if answer)


def _compare(pressure: Pressure, settings: Settings, log: dict[int, list[Logged]]) -> None:
    """Every record is an event of its own: so each user's total is the number of the user's records."""
    expected = Counter(name((record.key or b"").decode()) for records in log.values() for record in records)
    found: Counter[int] = Counter()
    for shard in range(settings.streaming.logical_shards):
        with open_store(
            settings.data_dir / "state", settings.data_dir / "windows", shard, settings.streaming
        ) as store:
            found.update({int(row["user"]): int(row["total"]) for row in store.rows()})
    pressure.lost = (expected - found).total()
    pressure.doubled = (found - expected).total()


def _mib(size: int) -> float:
    return round(size / MIB, 1)
