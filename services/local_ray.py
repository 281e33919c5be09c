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
import tempfile
from pathlib import Path

from streaming.broker import free_port

_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "DS_ACCELERATOR": "cpu",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


def start_ray(folder: Path, num_cpus: int = 16) -> None:
    """Start Ray for this process.

    Args:
        folder: for what outlives a process: logs and the files of the ingress.
        num_cpus: logical CPUs.
    """
    # unix sockets must have short paths, so Ray's session lives in a short temporary folder
    session = Path(tempfile.mkdtemp(prefix="hr-", dir="/tmp"))
    ingress = session / "ingress"
    ingress.mkdir()
    os.environ.update({name: os.environ.get(name, value) for name, value in _ENVIRONMENT.items()})
    os.environ.update(
        {
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(ingress / "haproxy.cfg"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(ingress / "admin.sock"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(ingress),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(ingress / "server-state"),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port()),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port()),
            "HEADRACE_RAY_SESSION": str(session),
        }
    )
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(16))
    import ray

    ray.init(
        num_cpus=num_cpus,
        include_dashboard=True,
        dashboard_host="127.0.0.1",
        log_to_driver=False,
        logging_level=logging.WARNING,
        _temp_dir=str(session / "ray"),
        namespace="headrace",
    )
    folder.mkdir(parents=True, exist_ok=True)
    link = folder / "logs"
    with contextlib.suppress(FileNotFoundError):
        link.unlink()
    link.symlink_to(session / "ray" / "session_latest" / "logs")


def stop_ray() -> None:
    """Stop Ray and everything it started; a Ray that is not running is left alone."""
    import ray

    if ray.is_initialized():
        ray.shutdown()
    session = os.environ.pop("HEADRACE_RAY_SESSION", None)
    if session:
        shutil.rmtree(session, ignore_errors=True)
