"""Runs one system over the whole topic in processes of its own, and checks what it counted.

Each system gets an empty folder for its durable state on the same disk, and both cores. `events_per_s` is the number
of records divided by the time from the first record polled by any of its processes to the last commit of any of
them. A run whose counts or whose witness (the newest 50 events of the busiest user) are wrong is an error, not a
result.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from streaming.broker import free_port
from tests.bench.producer import PARTITIONS
from tests.bench.workload import Workload

HERE = Path(__file__).parent
RUN_TIMEOUT_S = 600.0


class BenchError(Exception):
    """A system could not be run, or did not do the work; the message says which and where its log is."""


@dataclass(frozen=True)
class Stream:
    """The topic that all systems read, and what must come of it."""

    broker: str
    topic: str
    sizes: list[int]
    applied: int
    duplicates: int
    witness: str
    newest: list[str]

    @staticmethod
    def of(broker: str, topic: str, workload: Workload) -> "Stream":
        """The stream that this workload makes."""
        user = workload.witness
        return Stream(
            broker,
            topic,
            workload.partition_sizes(PARTITIONS),
            workload.applied,
            workload.duplicates,
            f"u{user:06d}",
            workload.newest(user),
        )

    @property
    def events(self) -> int:
        """Records on the topic."""
        return sum(self.sizes)


@dataclass(frozen=True)
class Run:
    """One system, once."""

    events_per_s: float
    seconds: float
    cpu_s: float
    processes: int
    detail: dict[str, Any]

    def figures(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def ensure_peers(venv: Path, requirements: str = "peers.txt", *pip_options: str) -> Path:
    """Make the peers' environment where there is none; returns its Python.

    Args:
        venv: where it is or shall be.
        requirements: file of pins beside this one.
        pip_options: further options of `pip install`.

    Raises:
        BenchError: installing failed.
    """
    python = venv / "bin" / "python"
    ready = venv / ".ready"
    pins = (HERE / requirements).read_text()
    if python.exists() and ready.exists() and ready.read_text() == pins:
        return python
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_options]
    for command in ([sys.executable, "-m", "venv", str(venv)], [*install, "-r", requirements]):
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=900, check=False)
        if done.returncode:
            raise BenchError(
                f"{' '.join(command)} failed in {HERE}; `--only headrace` needs no peers: {done.stderr[-800:]}"
            )
    ready.write_text(pins)
    return python


def run_bytewax(stream: Stream, python: Path, style: str, processes: int, logs: Path) -> Run:
    """Bytewax in `style` ("documented" or "tuned") as a cluster of processes with one worker each."""

    def commands(folder: Path, results: Sequence[Path]) -> list[list[str]]:
        recovery = folder / "recovery"
        recovery.mkdir()
        subprocess.run(
            [str(python), "-m", "bytewax.recovery", str(recovery), str(processes)], check=True, timeout=60
        )
        addresses = ",".join(f"127.0.0.1:{free_port()}" for _ in results)
        script, before = str(HERE / "peer_bytewax.py"), (style, stream.broker, stream.topic, str(recovery))
        return [
            [str(python), script, *before, str(index), addresses, stream.witness, str(result)]
            for index, result in enumerate(results)
        ]

    return _run(f"bytewax-{style}", stream, processes, commands, logs)


def run_quix(stream: Stream, python: Path, processes: int, logs: Path) -> Run:
    """Quix Streams as a consumer group of processes."""
    group = f"bench-{time.time_ns()}"

    def commands(folder: Path, results: Sequence[Path]) -> list[list[str]]:
        script, sizes = str(HERE / "peer_quix.py"), json.dumps(stream.sizes)
        before = (str(python), "-W", "ignore", script, stream.broker, stream.topic)
        after = (group, sizes, stream.witness)
        return [
            [*before, str(folder / f"state-{index}"), *after, str(result), *map(str, results)]
            for index, result in enumerate(results)
        ]

    return _run("quixstreams", stream, processes, commands, logs)


def _run(
    name: str,
    stream: Stream,
    processes: int,
    commands: Callable[[Path, Sequence[Path]], list[list[str]]],
    logs: Path,
) -> Run:
    folder = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=logs))
    results = [folder / f"result-{index}.json" for index in range(processes)]
    try:
        wanted = commands(folder, results)
        used = _children_cpu_s()
        log = logs / f"{name}.log"
        with log.open("ab") as out:
            running = [
                subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder)
                for command in wanted
            ]
            _wait(name, running, log)
        found = [json.loads(result.read_text()) for result in results if result.exists()]
        if len(found) < processes:
            raise BenchError(f"{name}: {processes - len(found)} processes left no result: see {log}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    check(name, stream, found)
    seconds = max(part["last"] for part in found) - min(part["first"] for part in found if part["first"])
    return Run(
        round(stream.events / seconds, 1),
        round(seconds, 3),
        round(_children_cpu_s() - used, 2),
        processes,
        {"records": [part["records"] for part in found]},
    )


def check(name: str, stream: Stream, found: Sequence[dict[str, Any]]) -> None:
    """Every record must have been counted once, and the witness must be as the workload says.

    Raises:
        BenchError: it is not so.
    """
    expected = {"records": stream.events, "applied": stream.applied, "duplicates": stream.duplicates}
    seen = {key: sum(part[key] for part in found) for key in expected}
    if seen != expected:
        raise BenchError(f"{name}: expected {expected}, counted {seen}")
    if stream.newest not in [part["witness"] for part in found]:
        raise BenchError(f"{name}: the newest events of {stream.witness} are wrong")


def _wait(name: str, running: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    deadline = time.monotonic() + RUN_TIMEOUT_S
    try:
        for process in running:
            process.wait(max(0.1, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise BenchError(f"{name} did not end within {RUN_TIMEOUT_S:.0f} s: see {log}") from None
    finally:
        for process in running:
            if process.poll() is None:
                process.kill()
                process.wait(10)


def _children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def run_module(
    module: str, spec: dict[str, Any], log: Path, timeout_s: float = RUN_TIMEOUT_S, python: Path | None = None
) -> dict[str, Any]:
    """Run one of this package's measurements in a process of its own; returns what it wrote.

    Args:
        module: name within this package.
        spec: what it is told.
        log: file that its output is added to.
        timeout_s: longest run.
        python: of another environment, where the module runs as a script in an empty folder that goes afterwards;
            None = this environment.

    Raises:
        BenchError: it failed; the message ends with its last words.
    """
    with tempfile.TemporaryDirectory(prefix="spec-") as name:
        spec_file, result = Path(name) / "spec.json", Path(name) / "result.json"
        spec_file.write_text(json.dumps(spec))
        begin, folder = [sys.executable, "-m", f"tests.bench.{module}"], HERE.parent.parent
        if python is not None:  # -P: what lies beside the script must not hide what it imports
            begin, folder = [str(python), "-P", "-W", "ignore", str(HERE / f"{module}.py")], Path(name)
        with log.open("ab") as out:
            process = subprocess.Popen(
                [*begin, str(spec_file), str(result)],
                stdout=out,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=os.environ,
            )
            try:
                process.wait(timeout_s)
            except subprocess.TimeoutExpired:
                process.terminate()
                process.wait(30)
                raise BenchError(f"{module} did not end within {timeout_s:.0f} s: see {log}") from None
        if process.returncode or not result.exists():
            tail = log.read_text(errors="replace")[-800:]
            raise BenchError(f"{module} failed with code {process.returncode}; its last words: {tail}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def run_headrace(
    stream: Stream, client: str, overrides: dict[str, Any], logs: Path, profile_dir: Path | None = None
) -> Run:
    """Headrace with one of its Kafka clients."""
    data_dir = Path(tempfile.mkdtemp(prefix="headrace-", dir=logs))
    try:
        spec = {
            "broker": stream.broker,
            "topic": stream.topic,
            "client": client,
            "data_dir": str(data_dir),
            "events": stream.events,
            "applied": stream.applied,
            "duplicates": stream.duplicates,
            "witness": stream.witness,
            "newest": stream.newest,
            "overrides": overrides,
            "profile_dir": str(profile_dir) if profile_dir else None,
        }
        found = run_module("headrace", spec, logs / f"headrace-{client}.log")
    finally:
        shutil.rmtree(data_dir, ignore_errors=True)
    seconds = found["last"] - found["first"]
    return Run(
        round(stream.events / seconds, 1),
        round(seconds, 3),
        round(found["cpu_s"], 2),
        len(found["cpu_s_by_process"]),
        {"cpu_s_by_process": found["cpu_s_by_process"], "users": found["users"]},
    )
