"""The image built by its Dockerfile, and run as Kubernetes and compose.yaml run it: no root, nothing to write on.

It needs root, podman, runc and mmdebstrap (Debian's packages), and takes minutes: `make image-test`. Where the base
image cannot be pulled, one like it is made of Debian's packages, with another patch release of Python.
"""

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest
import yaml

from streaming.broker import EmbeddedBroker, free_port
from streaming.config import KafkaSettings
from streaming.kafka import make_producer
from tests.k8s.rendering import ROOT

TOOLS = ("podman", "runc", "mmdebstrap")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(bool(MISSING) or os.geteuid() != 0, reason=f"needs root and {', '.join(TOOLS)}"),
]
IMAGE = "localhost/headrace:test"
BASE = "docker.io/library/python:{}-slim-bookworm"
# what makes a package index and its certificates known to pip here, seen by the build alike
PIP_FILES = ("/etc/pip.conf", str(Path.home() / ".config/pip/pip.conf"), "/etc/ssl/certs")


def podman(*arguments: str, timeout_s: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        ["podman", "--runtime", "runc", *arguments],
        env=os.environ | {"STORAGE_DRIVER": "vfs"},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert not check or done.returncode == 0, (
        f"{' '.join(arguments)}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    )
    return done


def pip_mounts() -> list[str]:
    """Options that show a build what pip is configured with on this machine."""
    files = [*PIP_FILES, *os.environ.get("PIP_FIND_LINKS", "").split()]
    listed = subprocess.run(["pip", "config", "list"], capture_output=True, text=True, check=True).stdout
    # an index in a folder refers to files beside it
    files += [
        str(Path(part[len("file://") :]).parent)
        for part in listed.replace("'", " ").split()
        if part.startswith("file://")
    ]
    mounts = [f"--volume={path}:{path}:ro" for path in dict.fromkeys(files) if Path(path).exists()]
    return mounts + [f"--env={name}={value}" for name, value in os.environ.items() if name.startswith("PIP_")]


def make_base(folder: Path, version: str) -> None:
    """An image under the name of the base image: Debian with its Python, where `python` is on the PATH first."""
    name = BASE.format(version)
    if podman("image", "exists", name, check=False).returncode == 0:
        return
    if podman("pull", "--quiet", name, timeout_s=300, check=False).returncode == 0:
        return
    [sources] = [
        path
        for path in map(Path, ("/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"))
        if path.exists()
    ]
    packages = "ca-certificates,python3.11,python3.11-venv,python3-pip"
    subprocess.run(
        [
            "mmdebstrap",
            "--quiet",
            "--variant=apt",
            f"--include={packages}",
            "bookworm",
            str(folder / "base.tar"),
            str(sources),
        ],
        check=True,
        timeout=600,
    )
    (folder / "Dockerfile").write_text(
        "FROM scratch\nADD base.tar /\n"
        "RUN ln -s /usr/bin/python3.11 /usr/local/bin/python\n"
        "ENV PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin\n"
    )
    podman("build", "--isolation=chroot", "--network=host", f"--tag={name}", str(folder), timeout_s=300)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The image of what is committed here."""
    given = os.environ.get("HEADRACE_TEST_IMAGE")
    if given:
        return given
    folder = tmp_path_factory.mktemp("image")
    version = next(
        line for line in (ROOT / "Dockerfile").read_text().splitlines() if line.startswith("ARG PYTHON=")
    )
    make_base(folder, version.split("=")[1])
    podman(
        "build",
        "--isolation=chroot",
        "--network=host",
        "--pull=never",
        "--layers",
        "--build-arg=VARIANT=cpu",
        "--format=docker",  # which knows health checks
        *pip_mounts(),
        f"--tag={IMAGE}",
        str(ROOT),
        timeout_s=1500,
    )
    return IMAGE


def confined(*options: str) -> list[str]:
    """Options of `podman run`: the host's network, a read-only root, no capability, no way to get one."""
    return [
        "--network=host",
        "--read-only",
        "--cap-drop=all",
        "--security-opt=no-new-privileges",
        "--ulimit=nofile=1024:20000",
        "--ulimit=nproc=20000:20000",
        "--shm-size=2g",
        "--tmpfs=/tmp:mode=1777",
        *options,
    ]


def test_it_holds_what_is_needed_and_no_more(image):
    def run(*command: str) -> str:
        return podman(
            "run", "--rm", *confined(f"--entrypoint={command[0]}"), image, *command[1:]
        ).stdout.strip()

    assert run("id", "-u") == "10001"
    assert run("sh", "-c", "which g++ gcc make pytest || echo none") == "none"
    assert run("headrace", "--version").split()[-1] == "0.1.0"
    said = run(
        "python", "-c", "import torch, services.cli, opentelemetry.exporter.otlp; print(torch.version.cuda)"
    )
    assert said == "None"
    assert "uplot.min.js" in run("sh", "-c", "ls -R /opt/headrace/lib/python3.11/site-packages/serving/page")
    # Ray and its launcher call these
    assert run("sh", "-c", "which ps wget ray headrace-haproxy | wc -l") == "4"


@contextmanager
def compose_container(image: str, broker: str, port: int) -> Iterator[str]:
    """What compose.yaml starts, with another broker and ports, on the host's network."""
    service = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["headrace"]
    environment = service["environment"] | {
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": broker,
        "HEADRACE_SERVING__PORT": str(port),
        "HEADRACE_SERVING__HOST": "127.0.0.1",
        "HEADRACE_METRICS__PORT": str(free_port()),
        "HEADRACE_STREAMING__MAP_SIZE_GIB": "0.25",
    }
    said = [f"--env={name}={value}" for name, value in environment.items()]
    name = f"headrace-test-{port}"
    podman(
        "run",
        "--detach",
        f"--name={name}",
        "--volume=/data",
        *confined(*said),
        image,
        *service["command"],
    )
    try:
        yield name
    finally:
        podman("rm", "--force", "--volumes", name, check=False)


def test_what_compose_starts_serves_and_stops(image):
    port = free_port()
    with (
        EmbeddedBroker() as broker,
        compose_container(image, broker.bootstrap_servers, port) as name,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10, trust_env=False) as client,
    ):
        wait_for(lambda: client.get("/healthz").is_success, name)
        producer = make_producer(KafkaSettings(bootstrap_servers=broker.bootstrap_servers))
        producer.send("items", json.dumps({"item_id": "a", "title": "A lamp"}).encode(), key=b"a")
        producer.close()
        event = {"user_id": "ann", "item_id": "a", "type": "view"}
        sent = client.post("/v1/events", json={"events": [event]})
        assert sent.status_code == 202, sent.text
        wait_for(lambda: client.get("/v1/users/ann").is_success, name)
        assert client.get("/v1/users/ann").json()["total"] == 1
        wait_for(lambda: podman("healthcheck", "run", name, check=False).returncode == 0, name)
        [item] = client.get("/v1/recommendations/bob").json()["items"]
        assert item["title"] == "A lamp"
        assert "Headrace" in client.get("/").text
        status = client.get("/v1/stats").json()
        assert status["problems"] == {}, status["problems"]
        [exporter] = status["metrics"]["exporters"]
        metrics = httpx.get(f"http://127.0.0.1:{exporter['port']}/metrics", timeout=10, trust_env=False).text
        assert re.search(r"^headrace_state_rows 1\.0$", metrics, re.MULTILINE)
        told = podman("exec", name, "headrace", "doctor", "--json", timeout_s=120, check=False).stdout
        wrong = [one for one in json.loads(told)["findings"] if one["level"] == "error"]
        assert not wrong, wrong
        began = time.monotonic()
        podman("stop", "--time=30", name, timeout_s=60)
        assert time.monotonic() - began < 30
        assert podman("inspect", "--format={{.State.ExitCode}}", name).stdout.strip() == "0"


def wait_for(done: Callable[[], bool], name: str) -> None:
    """Wait until it is true; what the container wrote is shown if that ends, or the time is over."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        with suppress(httpx.TransportError):
            if done():
                return
        if podman("inspect", "--format={{.State.Running}}", name).stdout.strip() != "true":
            break
        time.sleep(0.5)
    pytest.fail(podman("logs", name).stderr[-4000:])
