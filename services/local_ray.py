"""A Ray of one's own on one machine, set up the way Headrace wants it.

Serve's HAProxy ingress and its throughput-optimised mode are switched on by environment variables that must be
there before Ray starts, so that every process inherits them. Ray gets more logical CPUs than there are cores:
actors ask for fractions, and the operating system shares the cores better than a reservation would. The
dashboard stays on, because Ray Train polls its state API.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from streaming.broker import free_port
from streaming.meters import FOLDER

_GRACE_S = 2.0

_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0.5",  # by default an empty application takes 30 s to stop
    # a request whose replica died before it answered goes to another one; events keep their ids (serving/ports.py)
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:9",  # the discard port: its lines hold whole paths, that is ids
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serving.ingress.middlewares",
    "RAY_worker_niceness": "0",  # by default 15 for all, and then the learner cannot be nicer than serving
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def start_ray(folder: Path, num_cpus: int = 16) -> None:
    """Start Ray for this process. Must be called in the main thread: Ray's processes end with their thread.

    Args:
        folder: for what outlives a process: logs and the files of the ingress.
        num_cpus: logical CPUs.
    """
    # unix sockets must have short paths, so Ray's session lives in a short temporary folder
    session = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    ingress = session / "ingress"
    ingress.mkdir()
    first_port = 20_000 + os.getpid() % 200 * 50
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    os.environ.update(
        {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(ingress / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(ingress / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(ingress),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(ingress / "server-state"),
            # two Rays on one machine must not listen on the same ports: the kernel would share them between both
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first_port),
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first_port + 24),
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first_port + 25),
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first_port + 49),
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port()),
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "HEADRACE_RAY_SESSION": str(session),
        }
    )
    haproxy = Path(sys.executable).with_name("headrace-haproxy")
    if haproxy.exists():
        os.environ.setdefault("RAY_SERVE_HAPROXY_BINARY_PATH", str(haproxy))
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    import ray

    for name in ("ray", "ray.serve"):  # what they tell goes to their log files as well
        logging.getLogger(name).setLevel(logging.ERROR)
    on_term = signal.getsignal(signal.SIGTERM)
    with _metrics_in(session / "metrics"):
        ray.init(
            num_cpus=num_cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=str(session / "ray"),
            namespace="headrace",
        )
    signal.signal(signal.SIGTERM, on_term)  # Ray's own handler prints a stack trace and exits
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "logs"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(session / "ray" / "session_latest" / "logs")


@contextlib.contextmanager
def _metrics_in(folder: Path) -> Iterator[None]:
    """Have the processes that are started meanwhile keep their metrics in files, for the exporter.

    This process keeps its own, as it chose when `streaming.meters` was imported. Where the environment names a folder
    already, that one is taken.
    """
    if FOLDER in os.environ:
        yield
        return
    folder.mkdir()
    os.environ[FOLDER] = str(folder)
    try:
        yield
    finally:
        del os.environ[FOLDER]


def stop_ray() -> None:
    """Stop Ray and everything it started; a Ray that is not running is left alone.

    Ray stops its own processes, but what an actor started (the ingress) can outlive it, so whoever descended from
    Ray's processes and is still there a little later is ended here.
    """
    import ray

    if ray.is_initialized():
        node = ray._private.worker._global_node
        started = [process.process.pid for group in node.all_processes.values() for process in group]
        family = _descendants(started)
        ray.shutdown()
        _, alive = psutil.wait_procs(family, timeout=_GRACE_S)
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
    session = os.environ.pop("HEADRACE_RAY_SESSION", None)
    if session:
        shutil.rmtree(session, ignore_errors=True)


def _descendants(pids: list[int]) -> list[psutil.Process]:
    """The processes of these ids that run, with all their children."""
    family: dict[int, psutil.Process] = {}
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            family |= {child.pid: child for child in [process, *process.children(recursive=True)]}
    return list(family.values())
