"""How much machine a load needs, reckoned from what was measured.

Every constant is a figure of `sizing.toml`, which names the committed report that it was read from and the command
that made that. What is not measured is an assumption, and may be set: how full cores are planned, how many users
come within an hour, how long windows are kept. The result is a plan, not a promise: the figures are of one kind of
core, and beyond the loads that were measured they are straight lines.
"""

import functools
import math
import tomllib
from dataclasses import dataclass
from importlib import resources

_GIB = 2**30
_DAY_S = 86_400
_MODELS = 22  # versions on disk: training.keep_versions, the current one and the one before
_WINDOW_S, _PASSES = 3600, 4  # the default window; twice, with one replayed sequence for each new one
_ROUND_S = 20  # training.max_seconds_per_window
_SNAPSHOTS = 4  # of a shard: streaming.snapshots.keep, and one that is being written
_HEADROOM = 1.25  # of memory


@dataclass(frozen=True)
class Figure:
    """A measured number, and where it is from."""

    value: float
    unit: str
    report: str
    command: str


@dataclass(frozen=True)
class Load:
    """What comes in, and what is assumed of it.

    Attributes:
        events_per_s: at the height of the day, sustained.
        users: who are remembered; none are forgotten unless `streaming.state.ttl_s` is set.
        hot_share: of the users, those whose rows are to stay in the page cache.
        busy: how full cores are planned; the rest is for peaks and for smaller, costlier batches.
        mean_share: of `events_per_s`, what comes over a whole day on average; it fills the disk.
        keep_days: how long windows are kept (nothing deletes them), and events in Kafka.
        event_bytes: of a record in Kafka, before compression.
    """

    events_per_s: float
    users: float
    items: float
    requests_per_s: float
    hot_share: float = 0.2
    busy: float = 0.5
    mean_share: float = 0.4
    keep_days: float = 14.0
    event_bytes: float = 200.0
    confluent: bool = False
    gpu: bool = False


@dataclass(frozen=True)
class Part:
    """What one part of the system needs."""

    name: str
    processes: int
    cores: float
    memory_gib: float
    disk_gib: float
    why: str


@dataclass(frozen=True)
class Size:
    """A plan.

    Attributes:
        cores, memory_gib, disk_gib: of the worker, rounded up to what one can order.
        snapshots_gib: in the store of snapshots. kafka_gib: on each of three brokers that all hold a copy.
        notes: where it goes beyond what was measured, or cannot be had in one machine.
    """

    load: Load
    parts: tuple[Part, ...]
    cores: int
    memory_gib: int
    disk_gib: int
    snapshots_gib: float
    kafka_gib: float
    settings: dict[str, int]
    notes: tuple[str, ...]

    def cost(self, core: float, memory_gib: float, disk_gib: float) -> float:
        """Per month, of the worker: prices are per core, GiB of memory and GiB of disk, and month."""
        return self.cores * core + self.memory_gib * memory_gib + self.disk_gib * disk_gib


@functools.cache
def figures() -> dict[str, Figure]:
    """The measured numbers, by name."""
    document = tomllib.loads(resources.files("services").joinpath("sizing.toml").read_text())
    return {name: Figure(**entry) for name, entry in document.items()}


def size(load: Load) -> Size:
    """Reckon what a load needs."""
    value = {name: figure.value for name, figure in figures().items()}
    ingest, shards, replicas = _ingest(load, value), _shards(load, value), _replicas(load, value)
    catalogue = _catalogue(load, value)
    parts = (
        ingest,
        shards,
        replicas,
        _learner(load, value),
        catalogue,
        _rest(load, value),
        _windows(load, value),
    )
    twice = (
        shards.disk_gib + catalogue.disk_gib
    )  # an upgraded cluster has its own beside the old one's; the rest is linked
    state_gib = load.users * value["snapshot_bytes_per_user"] / _GIB
    memory = sum(part.memory_gib for part in parts)
    cores = max(2, math.ceil(sum(part.cores for part in parts)))
    return Size(
        load=load,
        parts=parts,
        cores=cores,
        memory_gib=max(8, math.ceil(memory * _HEADROOM)),
        disk_gib=_round_up(sum(part.disk_gib for part in parts) + twice, 10),
        snapshots_gib=_SNAPSHOTS * state_gib,
        kafka_gib=load.events_per_s * load.mean_share * _DAY_S * load.keep_days * load.event_bytes / _GIB,
        settings={
            "streaming.ingestors": ingest.processes,
            "streaming.shard_actors": shards.processes,
            "streaming.logical_shards": max(16, 1 << math.ceil(math.log2(4 * shards.processes))),
            "kafka.partitions": max(4, 2 * ingest.processes),
            "serving.replicas.maximum": replicas.processes,
        },
        notes=_notes(load, cores, value),
    )


def _stream(load: Load, us: float, idle_cores: float) -> tuple[float, int]:
    """Cores and processes that take `us` for each event, and something while there are few."""
    busy = load.events_per_s * us / 1e6 / load.busy
    processes = max(1, math.ceil(busy))
    return busy + processes * idle_cores, processes


def _ingest(load: Load, value: dict[str, float]) -> Part:
    us = value["ingestor_cpu_us_confluent" if load.confluent else "ingestor_cpu_us"]
    idle = value["ingestor_idle_cores"]
    cores, processes = _stream(load, us, idle)
    why = f"{load.events_per_s:,.0f} events/s × {us:.2f} µs, {load.busy:.0%} full; {idle:.2f} idle"
    return Part("ingestors", processes, cores, processes * value["ingestor_mib"] / 1024, 0.0, why)


def _shards(load: Load, value: dict[str, float]) -> Part:
    us = value["shard_cpu_us"]
    cores, processes = _stream(load, us, value["shard_idle_cores"])
    hot = load.users * load.hot_share * value["state_bytes_per_user"] / _GIB
    why = (
        f"{load.events_per_s:,.0f} events/s × {us:.2f} µs; rows of {load.hot_share:.0%} of users in the page cache; "
        f"{value['file_bytes_per_user']:,.0f} bytes of disk a user"
    )
    memory = processes * value["shard_mib"] / 1024 + hot
    return Part(
        "state shards", processes, cores, memory, load.users * value["file_bytes_per_user"] / _GIB, why
    )


def request_us(items: float, value: dict[str, float]) -> float:
    """CPU of a ranking, proxy and the rest of Ray included, µs: linear in the catalogue from the smaller one on."""
    small, large = value["small_items"], value["large_items"]
    slope = (value["large_items_times"] - 1) / (large - small)
    return value["request_cpu_us"] * (1 + slope * max(0.0, items - small))


def _replicas(load: Load, value: dict[str, float]) -> Part:
    us = request_us(load.items, value)
    cores = load.requests_per_s * us / 1e6 / load.busy
    of_replicas = cores * value["replica_cpu_us"] / value["request_cpu_us"]
    processes = max(1, math.ceil(of_replicas))
    memory = processes * (value["replica_mib"] / 1024 + load.items * value["replica_bytes_per_item"] / _GIB)
    why = f"{load.requests_per_s:,.0f} rankings/s × {us:,.0f} µs with {load.items:,.0f} items, proxy included"
    return Part("API replicas", processes, cores, memory, 0.0, why)


def _learner(load: Load, value: dict[str, float]) -> Part:
    memory = value["learner_mib"] / 1024 + load.items * value["learner_bytes_per_item"] / _GIB
    more_items = max(0.0, load.items - value["small_items"])
    models = _MODELS * (value["bundle_bytes"] + more_items * value["bundle_bytes_per_item"]) / _GIB
    if load.gpu:
        return Part(
            "learner",
            1,
            0.0,
            0.0,
            models,
            f"in a pod of its own, with a GPU; {_MODELS} model versions on disk",
        )
    minutes = _learning_s(load, value) / 60
    why = f"an hour's window takes {minutes:,.0f} min of one core to learn in full; {_MODELS} model versions on disk"
    return Part("learner", 1, 1.0, memory, models, why)


def _learning_s(load: Load, value: dict[str, float]) -> float:
    """Seconds of one core to learn all of an average window."""
    return load.events_per_s * load.mean_share * _WINDOW_S * _PASSES / value["targets_per_core_s"]


def _catalogue(load: Load, value: dict[str, float]) -> Part:
    memory = value["catalogue_mib"] / 1024 + load.items * value["learner_bytes_per_item"] / _GIB
    disk = load.items * value["catalog_bytes_per_item"] / _GIB
    return Part(
        "catalogue",
        1,
        0.1,
        memory,
        disk,
        f"{value['catalog_bytes_per_item']:,.0f} bytes of disk an item; memory as in the learner",
    )


def _rest(load: Load, value: dict[str, float]) -> Part:
    return Part(
        "Ray, supervisor, exporter",
        1,
        value["rest_cores"] / load.busy,
        value["rest_mib"] / 1024,
        1.0,
        "whatever the load",
    )


def _windows(load: Load, value: dict[str, float]) -> Part:
    events = load.events_per_s * load.mean_share * _DAY_S * load.keep_days
    disk = events * value["window_bytes_per_event"] / _GIB
    why = f"{load.keep_days:g} days × {load.mean_share:.0%} of the peak × {value['window_bytes_per_event']:.0f} bytes"
    return Part("windows", 0, 0.0, 0.0, disk, why)


def _notes(load: Load, cores: int, value: dict[str, float]) -> tuple[str, ...]:
    notes = []
    for given, measured, what in (
        (load.events_per_s, value["events_per_s"], "events/s"),
        (load.requests_per_s, value["requests_per_s"], "rankings/s"),
        (load.users, value["users"], "users"),
        (load.items, value["large_items"], "items"),
    ):
        if given > measured:
            notes.append(
                f"{given:,.0f} {what} are more than was measured ({measured:,.0f}): a straight line from there"
            )
    if load.items > value["large_items"]:
        notes.append(
            "for so many items install the extra `large` (an index), and measure: it may cost much less"
        )
    full_s = _learning_s(load, value)
    if not load.gpu and full_s > _ROUND_S:
        notes.append(
            f"training.max_seconds_per_window = {_ROUND_S} goes through {_ROUND_S / full_s:.2g} of an hour's window; "
            f"all of it takes {full_s / 60:,.0f} min of one core: raise it, with training.threads, or take a GPU"
        )
    if cores > 64:
        notes.append("the worker is one machine: above 64 cores divide the users over several Headraces")
    return tuple(notes)


def _round_up(number: float, step: int) -> int:
    return step * math.ceil(number / step)
