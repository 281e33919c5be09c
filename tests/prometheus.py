"""Prometheus as the operator would run it, small: one target, the rules of the manifests, on this machine only."""

import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from streaming.broker import free_port
from tests.k8s.rendering import Document, of_kind, render

needs_prometheus = pytest.mark.skipif(
    shutil.which("promtool") is None or shutil.which("prometheus") is None,
    reason="Prometheus is not installed (Debian: apt-get install prometheus)",
)
# what Grafana puts in the place of its variables, for a Prometheus that has been scraping for some seconds
GRAFANA = {"$__rate_interval": "30s", "$__range": "5m", "$job": ".+"}


def rule_groups() -> list[Document]:
    """The groups of the PrometheusRule, as Prometheus itself reads them."""
    [rules] = of_kind(render("prod"), "PrometheusRule")
    groups: list[Document] = rules["spec"]["groups"]
    return groups


def promtool(*arguments: str, stdin: str | None = None) -> str:
    """What promtool prints; it must find nothing wrong."""
    done = subprocess.run(
        ["promtool", *arguments], input=stdin, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def filled(query: str) -> str:
    """A query of a dashboard without Grafana's variables."""
    for name, put in GRAFANA.items():
        query = query.replace(name, put)
    return query


class Prometheus:
    """A running one."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def ask(self, path: str, **params: str) -> Any:
        """Data of its HTTP API."""
        answer = self._http.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def query(self, expression: str) -> list[Any]:
        """Series that an expression gives now."""
        found: list[Any] = self.ask("query", query=filled(expression))["result"]
        return found


@contextmanager
def scraping(folder: Path, target: str, timeout_s: float = 30) -> Iterator[Prometheus]:
    """A Prometheus that scrapes `host:port` once a second, with the rules of the manifests."""
    folder.mkdir()
    (folder / "rules.yaml").write_text(yaml.safe_dump({"groups": rule_groups()}))
    scrape = {"job_name": "headrace", "static_configs": [{"targets": [target]}]}
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [scrape],
    }
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yaml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
                "--log.level=warn",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=10, trust_env=False) as http:
            _wait_until_ready(http, process, folder / "log", timeout_s)
            yield Prometheus(http)
    finally:
        process.terminate()
        process.wait(timeout=20)


def _wait_until_ready(
    http: httpx.Client, process: subprocess.Popen[bytes], log: Path, timeout_s: float
) -> None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if http.get("/-/ready").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"Prometheus is not ready after {timeout_s:.0f} s: {log.read_text()}")
