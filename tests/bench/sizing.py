"""What `headrace size` reckons with and other benchmarks do not measure: bytes and memory, of what and by whom.

    python -m tests.bench.sizing            # writes docs/results/sizing.json; some five minutes

- State, windows, snapshots: users with full sequences, their events applied in the order of time over a week, so that
  windows of an hour close all the while. About one event of each active user falls into a window, and his
  context is stored with it: the costly end of what windows take.
- Items: catalogue and bundle on disk, and the memory of what serves or trains on them, as a slope between two sizes.
- Processes: the demo, and the private memory of each of its processes at its height; what is left over when all of
  those that have a load of their own are taken away is the fixed part. CPU is that of the last half minute. On a busy
  machine Ray may not start in time: start a demo by hand, and give its process with `--pid`.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from services.machine import machine, versions
from streaming import environment
from streaming.backup.snapshots import SnapshotStore
from streaming.batcher import Batcher, Cursor, Layout, ShardRoute
from streaming.broker import free_port
from streaming.catalog import CatalogReader
from streaming.config import SnapshotSettings, StreamingSettings
from streaming.events import EventDecoder
from streaming.intake import Decoded
from streaming.layout import shard_path, store_layout
from streaming.state import open_store
from tests.bench.serve_world import VERSION, make_bundle, make_catalogue, world_settings
from tests.bench.workload import TYPES

REPORT = Path("docs/results/sizing.json")
_USERS, _EVENTS, _SPAN_S, _PORTION = 10_000, 50, 7 * 86_400, 1_000
_ITEMS = (10_000, 100_000)
_DEMO_S, _RUNNING_S, _SAMPLE_EVERY_S, _IDLE_S = 45.0, 60.0, 2.0, 30.0
_ROLES = {  # a part of the command line → what the process does
    "ray::Ingestor": "ingestor",
    "ray::Shard": "shard",
    "ray::Cataloguer": "catalogue",
    "ray::ServeReplica:api": "replica",
    "ray::RayTrainWorker": "learner",
    "ray::ServeReplica:pipeline": "rest",
    "ray::": "rest",
    "haproxy": "proxy",
    "tansu": "broker",
    "headrace demo": "client",
    "headrace up": "client",
}


def main() -> None:
    """Measure, and write the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help="state, items, processes; default: all of them"
    )
    parser.add_argument("--report", type=Path, default=REPORT)
    parser.add_argument("--pid", type=int, help="of a demo that runs, to look at instead of starting one")
    parser.add_argument("--of", choices=("serve", "train"), help=argparse.SUPPRESS)
    parser.add_argument("--world", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        json.dump(anonymous_mib_with(options.of, options.world), sys.stdout)
        return
    measures = {"state": measure_state, "items": measure_items, "processes": measure_demo}
    report = json.loads(options.report.read_text()) if options.report.exists() else {}
    if options.pid:
        measures["processes"] = lambda _: measure_running(options.pid)
    for part in options.parts or measures:
        with tempfile.TemporaryDirectory(prefix="headrace-sizing-") as folder:
            report[part] = measures[part](Path(folder))
        report |= {"machine": machine(), "versions": versions()}
        options.report.write_text(json.dumps(report, indent=1) + "\n")
    sys.stdout.write(f"{options.report}\n")


def measure_state(folder: Path) -> dict[str, Any]:
    """Bytes of state and snapshot per user, and of windows per event, in one logical shard."""
    settings = StreamingSettings(logical_shards=1, map_size_gib=2, max_past_s=1e9)
    batcher, decoder = (
        Batcher(settings, (0,), Layout(0, (ShardRoute(None, (0,)),)), [0]),
        EventDecoder(settings),
    )
    with open_store(folder / "state", folder / "windows", 0, settings) as store:
        for offsets, values in _stream():
            events, rejected = decoder.decode(values)
            assert not rejected, rejected[0]
            now_ms, none = np.full(len(offsets), int(time.time() * 1000)), np.empty(0, np.int64)
            decoded = Decoded(events, offsets, now_ms, int(offsets[-1]), none, len(offsets))
            [batch] = batcher.records([(Cursor(0, int(offsets[0])), decoded)])
            store.apply(batch.part(0, 1))
        env = environment.open_reader(shard_path(folder / "state", 0))
        assert env is not None
        snapshots = SnapshotStore(SnapshotSettings(url=f"file://{folder}/snapshots"))
        taken = snapshots.save(env, 0, store_layout(settings))
        environment.close(env)
    windows = [file.stat().st_size for file in (folder / "windows").rglob("*.parquet")]
    return {
        "users": _USERS,
        "events": _USERS * _EVENTS,
        "windows": len(windows),
        "state_bytes_per_user": round(taken.raw_bytes / _USERS, 1),
        "file_bytes_per_user": round(
            (shard_path(folder / "state", 0) / "data.mdb").stat().st_size / _USERS, 1
        ),
        "snapshot_bytes_per_user": round(taken.bytes / _USERS, 1),
        "window_bytes_per_event": round(sum(windows) / (_USERS * _EVENTS), 1),
    }


def _stream() -> Iterator[tuple[np.ndarray, list[bytes]]]:
    """Offsets and records of every user's events, in the order of time."""
    rng = np.random.default_rng(0)
    start_ms = int((time.time() - _SPAN_S) * 1000)
    times = np.sort(rng.integers(0, _SPAN_S * 1000, _USERS * _EVENTS)) + start_ms
    users = rng.permutation(np.repeat(np.arange(_USERS), _EVENTS))
    items, kinds = rng.zipf(1.3, len(times)) % 10_000, rng.integers(0, len(TYPES), len(times))
    for first in range(0, len(times), _PORTION):
        part = slice(first, first + _PORTION)
        offsets = np.arange(len(times))[part]
        columns = (offsets, users[part], items[part], kinds[part], times[part])
        yield (
            offsets,
            [
                b'{"event_id": "w%d", "user_id": "u%06d", "item_id": "i%05d", "type": "%s", "timestamp": %d}'
                % (offset, user, item, TYPES[kind].encode(), time_ms)
                for offset, user, item, kind, time_ms in zip(*(c.tolist() for c in columns), strict=True)
            ],
        )


def measure_items(folder: Path) -> dict[str, Any]:
    """Bytes per item on disk, and in the memory of a replica and of the learner."""
    disk: dict[str, list[int]] = {"catalog": [], "bundle": []}
    memory: dict[str, list[float]] = {"serve": [], "train": []}
    for items in _ITEMS:
        world = folder / str(items)
        world.mkdir(parents=True)
        make_catalogue(world, items, np.random.default_rng(0))
        make_bundle(world, items, world_settings(world, 8000), 0)
        disk["catalog"].append(_bytes(world / "catalog"))
        disk["bundle"].append(_bytes(world / "models" / VERSION))
        for what, found in memory.items():
            command = [sys.executable, "-m", "tests.bench.sizing", "--of", what, "--world", str(world)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
            found.append(json.loads(done.stdout))
    return {
        "items": list(_ITEMS),
        "text_dim": 384,
        "catalog_bytes_per_item": _slope(disk["catalog"]),
        "bundle_bytes_per_item": _slope(disk["bundle"]),
        "bundle_bytes": disk["bundle"][0],
        "replica_bytes_per_item": _slope([mib * 2**20 for mib in memory["serve"]]),
        "learner_bytes_per_item": _slope([mib * 2**20 for mib in memory["train"]]),
    }


def anonymous_mib_with(what: str, world: Path) -> float:
    """Private memory of this process once it serves a world, or has its catalogue ready to train on, MiB."""
    settings = world_settings(world, 8000)
    if what == "serve":
        from serving.engine import Recommender

        held: Any = Recommender(world, settings.streaming, settings.serving)
    else:
        import torch

        from training.bundle import load_bundle
        from training.items import ItemSlots, build_table

        with closing(CatalogReader(world / "catalog")) as reader:
            now = reader.snapshot()
        seen, width = now.hashes[:0], now.vectors.shape[1]
        table = build_table(ItemSlots(1024), now.hashes, now.ids, now.vectors, seen, width)
        held = now, table, torch.from_numpy(table.text).clone(), load_bundle(world / "models" / VERSION)
    memory = private_mib(psutil.Process())
    del held
    return memory


def measure_demo(folder: Path) -> dict[str, Any]:
    """Private memory and CPU of each kind of process while the demo learns and serves."""
    command = [
        *(str(Path(sys.executable).with_name("headrace")), "demo", "--duration", str(_DEMO_S)),
        *("--port", str(free_port()), "--data-dir", str(folder / "data")),
    ]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        samples = list(_samples(psutil.Process(running.pid), lambda: running.poll() is None))
    finally:
        running.terminate()
        running.wait(60)
    assert running.returncode == 0, running.returncode
    return summary(samples)


def measure_running(pid: int) -> dict[str, Any]:
    """The same of a demo, or a `headrace up`, that has run for a while."""
    until = time.monotonic() + _RUNNING_S
    return summary(list(_samples(psutil.Process(pid), lambda: time.monotonic() < until)))


Sample = dict[str, dict[int, tuple[float, float]]]  # role → process id → (private MiB, CPU s)


def _samples(root: psutil.Process, goes_on: Callable[[], bool]) -> Iterator[Sample]:
    while goes_on():
        yield sample(root)
        time.sleep(_SAMPLE_EVERY_S)


def sample(root: psutil.Process) -> Sample:
    """(private MiB, CPU s) of every process below one, by role and process id."""
    found: Sample = {}
    try:
        family = [root, *root.children(recursive=True)]
    except psutil.Error:
        return found
    for process in family:
        try:
            called, cpu = " ".join(process.cmdline())[:300], process.cpu_times()
            role = next((role for part, role in _ROLES.items() if part in called), "rest")
            found.setdefault(role, {})[process.pid] = private_mib(process), cpu.user + cpu.system
        except (psutil.Error, OSError):
            continue
    return found


def summary(samples: Sequence[Sample]) -> dict[str, Any]:
    """Per role: most processes, most memory of one and of all together, and cores taken towards the end."""
    roles = sorted({role for one in samples for role in one})
    whole = [one for one in samples if len(one) == max(map(len, samples))]
    late = whole[-round(_IDLE_S / _SAMPLE_EVERY_S) :]
    figures: dict[str, Any] = {}
    for role in roles:
        held = [[mib for mib, _ in one.get(role, {}).values()] for one in samples]
        before, after = late[0].get(role, {}), late[-1].get(role, {})
        cpu = sum(after[pid][1] - before[pid][1] for pid in after if pid in before)
        figures[role] = {
            "processes": max(map(len, held)),
            "memory_mib": round(max(max(one, default=0) for one in held), 1),
            "memory_mib_together": round(max(map(sum, held)), 1),
            "cores": round(cpu / ((len(late) - 1) * _SAMPLE_EVERY_S), 3) if len(late) > 1 else None,
        }
    return {"roles": figures, "seconds": len(samples) * _SAMPLE_EVERY_S}


def private_mib(process: psutil.Process) -> float:
    """Memory that is there for this process: anonymous, and its share of shared memory. Linux only."""
    found = {}
    for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, value = line.partition(":")
        found[name] = int(value.split()[0]) / 1024
    return found["Pss_Anon"] + found["Pss_Shmem"]


def _bytes(folder: Path) -> int:
    """Bytes that the files below take on disk."""
    return sum(512 * os.stat(file).st_blocks for file in folder.rglob("*") if file.is_file())


def _slope(values: Sequence[float]) -> float:
    return round((values[1] - values[0]) / (_ITEMS[1] - _ITEMS[0]), 1)


if __name__ == "__main__":
    main()
