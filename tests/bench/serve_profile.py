"""Where the time of a request goes while the replica is loaded: by process, by stage, by function."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
from prometheus_client.parser import text_string_to_metric_families

from tests.bench.profiling import Profiler
from tests.bench.serve_apps import Server
from tests.bench.serve_load import Shot

_STAGE, _REQUEST = "headrace_stage_duration_seconds", "headrace_request_duration_seconds"
_TOP = 25
_WAITING = ("Worker.main_loop (ray/", "Thread.run (threading.py")  # in C without the lock: they look busy


def cpu_us(server: Server, load: Callable[[], Shot]) -> dict[str, float]:
    """CPU time per request of each kind of process and of the load generator, µs."""
    groups = server.processes()
    before = {name: _cpu_s(processes) for name, processes in groups.items()}
    own = _children_s()
    shot = load()
    used = {name: _cpu_s(processes) - before[name] for name, processes in groups.items()}
    del used["empty"]
    used["rest of Ray"] = used.pop("other")
    used["load generator"] = _children_s() - own
    return {name: round(1e6 * seconds / max(1, shot.requests), 1) for name, seconds in used.items()}


def stages_us(server: Server, load: Callable[[], Shot]) -> dict[str, float]:
    """Mean time of each stage and of the whole request inside the replica, per request, µs.

    A stage is counted once for requests that are ranked together, so its time is shared among them.
    """
    before = _sums(server)
    shot = load()
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in _sums(server).items()}
    return {name: round(1e6 * seconds / max(1, shot.requests), 1) for name, seconds in spent.items()}


def _sums(server: Server) -> dict[str, float]:
    text = httpx.get(f"{server.base}/metrics", timeout=10).raise_for_status().text
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == f"{_STAGE}_sum":
                found[sample.labels["stage"]] = sample.value
            if sample.name == f"{_REQUEST}_sum" and sample.labels["route"].startswith("/v1/recommendations"):
                found["request"] = found.get("request", 0.0) + sample.value
    return found


def profiled(server: Server, load: Callable[[], Shot], folder: Path) -> dict[str, Any] | None:
    """Shares of the replica's time by function; None where py-spy may not look into it."""
    [replica] = server.processes()["replica"]
    with Profiler({"replica": replica.pid}, folder):
        load()
    file = folder / "replica.raw"
    return hottest(file.read_text()) if file.is_file() and file.stat().st_size else None


def hottest(raw: str, rows: int = _TOP) -> dict[str, Any]:
    """The functions with the largest shares of the samples.

    Args:
        raw: py-spy's stacks, one a line: `frame;frame;frame count`.
    """
    own: Counter[str] = Counter()
    inside: Counter[str] = Counter()
    total = 0
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        frames = stack.split(";")
        if not stack or frames[-1].startswith(_WAITING):
            continue
        own[frames[-1]] += int(count)
        inside.update(dict.fromkeys(frames, int(count)))
        total += int(count)
    return {
        "samples": total,
        "own": {name: round(count / total, 4) for name, count in own.most_common(rows)},
        "with_callees": {name: round(count / total, 4) for name, count in inside.most_common(2 * rows)},
    }


def _cpu_s(processes: list[psutil.Process]) -> float:
    spent = 0.0
    for process in processes:
        try:
            times = process.cpu_times()
        except psutil.Error:
            continue
        spent += times.user + times.system
    return spent


def _children_s() -> float:
    """CPU time of the ended processes of this one: the load generator's."""
    times = psutil.Process().cpu_times()
    return times.children_user + times.children_system
