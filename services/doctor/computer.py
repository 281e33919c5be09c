"""The computer: cores, memory, shared memory, open files, and what training computes on."""

import importlib.metadata
import os
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil

from services.doctor.finding import Finding, error, ok, warning
from services.settings import Settings

_CGROUPS = Path("/sys/fs/cgroup")
_SHM = Path("/dev/shm")
_GIB = 2**30
_MEMORY_MIN, _MEMORY_WANTED = 3 * _GIB, 6 * _GIB  # `make demo` takes 4, a learner in full swing more
_RAY_SHARE = 0.3  # of memory: Ray's object store, where nobody says otherwise
_FILES_MIN, _FILES_WANTED = 1024, 8192  # HAProxy, Ray's workers and a socket per caller


def check_cores() -> Iterator[Finding]:
    """Cores this process may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if cores < 2:
        yield warning(
            "cores", f"{cores}", "give it two: learning and serving take turns on one, and requests wait"
        )
    else:
        yield ok("cores", f"{cores}")


def check_memory() -> Iterator[Finding]:
    """Memory that is free for Headrace, within the container's limit."""
    total, free = memory()
    seen = f"{free / _GIB:.1f} of {total / _GIB:.1f} GiB are free"
    if free < _MEMORY_MIN:
        yield error("memory", seen, f"stop something: starting takes some {_MEMORY_MIN // _GIB} GiB")
    elif free < _MEMORY_WANTED:
        yield warning(
            "memory",
            seen,
            f"{_MEMORY_WANTED // _GIB} GiB are comfortable; `headrace size` tells for your load",
        )
    else:
        yield ok("memory", seen)


def memory() -> tuple[int, int]:
    """(total, free) bytes: of the machine, or of the control group where that has less."""
    machine = psutil.virtual_memory()
    total, free = machine.total, machine.available
    for limit_file, used_file in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        limit, used = _number(_CGROUPS / limit_file), _number(_CGROUPS / used_file)
        if limit is not None and used is not None and limit < total:
            total, free = limit, min(free, limit - used)
    return total, max(0, free)


def check_shared_memory() -> Iterator[Finding]:
    """`/dev/shm`, where Ray keeps objects; where it is too small Ray takes /tmp and is slow."""
    if not _SHM.is_dir():
        return
    wanted = int(memory()[0] * _RAY_SHARE)
    stat = os.statvfs(_SHM)
    free = stat.f_bavail * stat.f_frsize
    seen = f"{free / _GIB:.1f} GiB are free, Ray asks for {wanted / _GIB:.1f}"
    if free < wanted:
        yield warning(
            str(_SHM),
            seen,
            "docker run --shm-size=4g, or a larger emptyDir `shm`; else Ray keeps objects on disk",
        )
    else:
        yield ok(str(_SHM), seen)


def check_open_files() -> Iterator[Finding]:
    """The limit of open files. Ray raises the soft one to the hard one by itself."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    seen = "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard:,}"
    advice = f"raise the hard limit (ulimit -Hn, LimitNOFILE=, --ulimit nofile=) to {_FILES_WANTED:,} or more"
    if hard != resource.RLIM_INFINITY and hard < _FILES_MIN:
        yield error("open files", seen, advice)
    elif hard != resource.RLIM_INFINITY and hard < _FILES_WANTED:
        yield warning("open files", seen, advice)
    else:
        yield ok("open files", seen)


def check_training(settings: Settings) -> Iterator[Finding]:
    """What DeepSpeed finds: a GPU where one is asked for; compiler, ninja and compiled ops are no must."""
    version = importlib.metadata.version("deepspeed")
    tools = [name for name in ("c++", "g++", "clang++", "ninja") if shutil.which(name)]
    cache = Path(os.environ.get("TORCH_EXTENSIONS_DIR", Path.home() / ".cache" / "torch_extensions"))
    compiled = sorted({path.stem for path in cache.rglob("*.so")}) if cache.is_dir() else []
    yield ok(
        "deepspeed",
        f"{version}; compiler and ninja: {', '.join(tools) or 'none'}; compiled ops: {', '.join(compiled) or 'none'}"
        " (training needs neither)",
    )
    if settings.training.use_gpu:
        yield from _gpus(settings.training.num_workers)


def _gpus(workers: int) -> Iterator[Finding]:
    import torch

    if torch.version.cuda is None:
        yield error(
            "gpu",
            f"torch {torch.__version__} is a CPU build",
            "install a CUDA build, or training.use_gpu = false",
        )
    elif not torch.cuda.is_available():
        yield error(
            "gpu",
            f"torch {torch.__version__} sees no GPU",
            "look at nvidia-smi and CUDA_VISIBLE_DEVICES (in a cluster: the pod's nvidia.com/gpu)",
        )
    elif torch.cuda.device_count() < workers:
        yield error(
            "gpu",
            f"{torch.cuda.device_count()} GPUs for {workers} workers",
            "lower training.num_workers: each takes a GPU of its own",
        )
    else:
        yield ok(
            "gpu", f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}"
        )


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no control group, or the word `max`
        return None
