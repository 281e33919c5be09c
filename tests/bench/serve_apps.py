"""The servers under test, each in processes of its own that live as long as a `with` block.

    python -m tests.bench.serve_apps KIND PORT WORLD

`ray` is Headrace's `api` application on a world, with an empty Serve application beside it under `/empty`: the same
Ray, the same switches (`services.local_ray`), the same proxy. `fastapi` is one uvicorn process (`serve_fastapi`).
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from streaming.broker import free_port
from tests.bench.peers import BenchError
from tests.bench.serve_load import Target
from tests.bench.serve_world import VERSION, world_settings

READY_TIMEOUT_S = 180.0
_STOP_TIMEOUT_S = 40.0
_RANKINGS = "/v1/recommendations/"


@dataclass(frozen=True)
class Server:
    """A server that answers."""

    base: str
    process: psutil.Process

    def rankings(self, users: int) -> Target:
        """Another user's recommendations with each request."""
        return Target(self.base, _RANKINGS, users)

    @property
    def empty(self) -> Target:
        """The empty application beside Headrace."""
        return Target(self.base, "/empty/")

    def processes(self) -> dict[str, list[psutil.Process]]:
        """The server's processes by what they do: replica, empty, proxy, and all others."""
        found: dict[str, list[psutil.Process]] = {name: [] for name in ("replica", "empty", "proxy", "other")}
        for process in [self.process, *self.process.children(recursive=True)]:
            try:
                called = " ".join(process.cmdline())[:200]
            except psutil.Error:
                continue
            found[_role(called)].append(process)
        return found


def _role(called: str) -> str:
    for role, part in (
        ("replica", "ServeReplica:api:"),
        ("empty", "ServeReplica:empty:"),
        ("proxy", "haproxy"),
    ):
        if part in called:
            return role
    return "other"


@contextmanager
def serving(kind: str, world: Path, log: Path) -> Iterator[Server]:
    """Run a server of this kind on a world until the block ends.

    Raises:
        BenchError: it did not come up; the message names its log.
    """
    port = free_port()
    command = [sys.executable, "-m", "tests.bench.serve_apps", kind, str(port), str(world.resolve())]
    with log.open("wb") as out:
        # its standard input ends when this process does, however that happens
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.STDOUT)
    assert child.stdin is not None
    try:
        base = f"http://127.0.0.1:{port}"
        _wait_until_trained(child, base, log)
        yield Server(base, psutil.Process(child.pid))
    finally:
        child.stdin.close()
        try:
            child.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            child.terminate()
            child.wait(_STOP_TIMEOUT_S)


def _wait_until_trained(child: "subprocess.Popen[bytes]", base: str, log: Path) -> None:
    """Until the world's first user gets an answer by the model."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    said = "nothing"
    while time.monotonic() < deadline and child.poll() is None:
        try:
            answer = httpx.get(f"{base}{_RANKINGS}u000000", timeout=5)
            said = answer.text[:200]
            if answer.status_code == 200 and answer.json()["model"]["version"] == VERSION:
                return
        except httpx.HTTPError as error:
            said = repr(error)
        time.sleep(0.2)  # between two looks, bounded by the deadline
    tail = log.read_text(errors="replace")[-800:]
    raise BenchError(f"{base} did not serve model {VERSION}; it last said {said}; {log} ends: {tail}")


def _run_ray(port: int, world: Path) -> None:
    from fastapi import FastAPI
    from ray import serve

    from services.local_ray import start_ray, stop_ray
    from serving.app import api_application

    settings = world_settings(world, port)
    start_ray(world)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        empty_app = FastAPI()

        @empty_app.get("/")
        async def empty() -> dict[str, str]:
            return {"status": "ok"}

        @serve.deployment(
            name="Empty",
            num_replicas=1,
            max_ongoing_requests=settings.serving.replicas.max_ongoing_requests,
            ray_actor_options={"num_cpus": 0.25},
            logging_config={"enable_access_log": False, "log_level": "WARNING"},  # as the API's
        )
        @serve.ingress(empty_app)
        class Empty:
            pass

        serve.run(Empty.bind(), name="empty", route_prefix="/empty")
        api = api_application(world, settings.kafka, settings.streaming, settings.serving)
        serve.run(api, name="api", route_prefix="/")
        sys.stdin.buffer.read()  # until the benchmark is done with it
    finally:
        stop_ray()


def _run_fastapi(port: int, world: Path) -> None:
    import threading

    import uvicorn

    from tests.bench.serve_fastapi import build

    server = uvicorn.Server(uvicorn.Config(build(world), port=port, log_level="warning", access_log=False))

    def stop_with_the_benchmark() -> None:
        sys.stdin.buffer.read()
        server.should_exit = True

    threading.Thread(target=stop_with_the_benchmark, daemon=True).start()
    server.run()


def main() -> None:
    """Serve until standard input ends."""
    kind, port, world = sys.argv[1:]
    {"ray": _run_ray, "fastapi": _run_fastapi}[kind](int(port), Path(world))


if __name__ == "__main__":
    main()
