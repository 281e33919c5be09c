"""Where the time goes: py-spy on running processes, and a short table of what it saw.

Profiles are written in py-spy's raw format (`frame;frame;frame count`, one line per stack), which speedscope and
flamegraph.pl read. A sampled process runs a little slower, so a profiled run is not a measured one.
"""

import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

from rich.table import Table

RATE_HZ = 200
_STOP_TIMEOUT_S = 30.0
_OURS = ("streaming/", "services/")
_LIBRARIES = ("kafka/", "confluent_kafka/", "ray/", "pyarrow/", "numpy/", "lmdb/", "lz4/")


class Profiler(AbstractContextManager["Profiler"]):
    """Samples processes while the block runs; does nothing without a folder."""

    def __init__(self, pids: Mapping[str, int], folder: Path | None) -> None:
        self._pids, self._folder = pids, folder
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> "Profiler":
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
            for name, pid in self._pids.items():
                self._running[name] = self._spy(self._folder / name, pid)
        return self

    def _spy(self, stem: Path, pid: int) -> subprocess.Popen[bytes]:
        command = [
            str(Path(sys.executable).with_name("py-spy")),
            "record",
            "--pid",
            str(pid),
            "--format",
            "raw",
        ]
        options = ["--function", "--nonblocking", "--rate", str(RATE_HZ), "--duration", "3600"]
        output = ["--output", str(stem.with_suffix(".raw"))]
        with stem.with_suffix(".log").open("wb") as log:
            return subprocess.Popen([*command, *options, *output], stdout=log, stderr=subprocess.STDOUT)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for spy in self._running.values():
            spy.send_signal(signal.SIGINT)  # it writes what it has
        for spy in self._running.values():
            spy.wait(_STOP_TIMEOUT_S)


def place(stack: str) -> str:
    """Whom a stack's time belongs to: our innermost function in it, and the library it calls there."""
    frames = stack.split(";")
    ours = max((at for at, frame in enumerate(frames) if any(part in frame for part in _OURS)), default=-1)
    called = [part for frame in frames[ours + 1 :] for part in _LIBRARIES if re.search(rf"[(/]{part}", frame)]
    inside = f" → {called[-1].rstrip('/')}" if called else ""
    if ours < 0:
        return f"outside{inside}"
    name, _, file = frames[ours].partition(" (")
    return f"{file.split(':')[0].rstrip(')')} {name}{inside}"


def shares(raw: str) -> list[tuple[str, float]]:
    """(place, share of the samples), largest first."""
    seen: Counter[str] = Counter()
    for line in raw.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack:
            seen[place(stack)] += int(count)
    total = sum(seen.values())
    return [(name, count / total) for name, count in seen.most_common()]


def profile_table(folder: Path, rows: int = 12) -> Table:
    """The largest shares of each profiled process."""
    table = Table(title="where the time goes (share of a process's busy samples)", title_justify="left")
    table.add_column("process", style="bold")
    table.add_column("function → library it is in")
    table.add_column("share", justify="right")
    for file in sorted(folder.glob("*.raw")):
        for index, (name, share) in enumerate(shares(file.read_text())[:rows]):
            table.add_row("" if index else file.stem, name, f"{100 * share:.1f}%")
        table.add_section()
    return table
