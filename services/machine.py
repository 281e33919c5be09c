"""What a measurement ran on: for the reports of evaluations and benchmarks."""

import importlib.metadata
import platform
import resource
from pathlib import Path
from typing import Any

import psutil


def machine() -> dict[str, Any]:
    """Processor, cores, memory and system."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"cpu": model, "cores": psutil.cpu_count(), "memory_gib": memory, "system": platform.platform()}


def peak_memory_gib() -> float:
    """Most memory this process has had resident so far, GiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)


def versions(*packages: str) -> dict[str, str]:
    """Python's version, and those of the packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
