"""A real S3 server for tests: SeaweedFS on free loopback ports, with credentials, its data in a folder."""

import json
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ACCESS_KEY, SECRET_KEY, BUCKET = "headrace-test", "known-to-all-tests", "bucket"
_READY_TIMEOUT_S = 60.0


def weed() -> str | None:
    """The server's program, as its wheel installs it; None where it is not installed."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.exists() else shutil.which("weed")


@contextmanager
def s3_server(program: str, folder: Path) -> Iterator[str]:
    """Run a server that lets these keys read, write and list in the bucket `BUCKET`; yields its endpoint URL."""
    user = {
        "name": "test",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": [f"{action}:{BUCKET}" for action in ("Read", "Write", "List")],
    }
    admin = {
        "name": "admin",
        "credentials": [{"accessKey": "admin", "secretKey": SECRET_KEY}],
        "actions": ["Admin"],
    }
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [user, admin]}))
    master, master_grpc, volume, volume_grpc, filer, filer_grpc = _free_ports(6)
    s3 = _port_with_one_above()
    options = {
        "dir": folder,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "master.port": master,
        "master.port.grpc": master_grpc,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 64,
        "volume.port": volume,
        "volume.port.grpc": volume_grpc,
        "volume.max": 16,
        "filer": "true",
        "filer.port": filer,
        "filer.port.grpc": filer_grpc,
        "filer.localSocket": folder / "filer.sock",
        "s3": "true",
        "s3.port": s3,
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.localSocket": folder / "s3.sock",
        "s3.config": config,
    }
    command = [
        program,
        "-logtostderr=true",
        "server",
        *(f"-{name}={value}" for name, value in options.items()),
    ]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            _wait_for(s3, server, folder / "log")
            endpoint = f"http://127.0.0.1:{s3}"
            _make_bucket(endpoint)
            yield endpoint
        finally:
            server.kill()  # a polite end takes it half a minute, and its data goes anyway
            server.wait(30)


def _make_bucket(endpoint: str) -> None:
    import s3fs

    s3fs.S3FileSystem(key="admin", secret=SECRET_KEY, endpoint_url=endpoint, skip_instance_cache=True).mkdir(
        BUCKET
    )


def _wait_for(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _READY_TIMEOUT_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise TimeoutError(f"the S3 server did not come up: {log.read_text()[-2000:]}") from None
            time.sleep(0.05)
        else:
            return


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        return [_bound(stack, 0) for _ in range(count)]


def _port_with_one_above() -> int:
    """A free port whose number plus 10,000 is free too: there the gateway puts its gRPC, without an option."""
    for port in random.sample(range(21_000, 29_000), 100):
        with ExitStack() as stack:
            try:
                _bound(stack, port + 10_000)
                return _bound(stack, port)
            except OSError:
                continue
    raise OSError("found no free pair of ports among 100")


def _bound(stack: ExitStack, port: int) -> int:
    probe = stack.enter_context(socket.socket())
    probe.bind(("127.0.0.1", port))
    return int(probe.getsockname()[1])
