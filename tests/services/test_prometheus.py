"""A real Prometheus scrapes a real exporter of processes that tell every metric there is."""

import os
import re
import subprocess
import sys
import time

import httpx
import pytest

from services.dashboards.files import dashboards
from services.exporter import Exporter
from services.metric_catalog import families
from services.metrics_config import MetricsSettings
from streaming.meters import FOLDER
from tests.k8s.rendering import ROOT
from tests.prometheus import needs_prometheus, promtool, rule_groups, scraping


@pytest.fixture(scope="module")
def exporter(tmp_path_factory):
    """Where an exporter listens that shows what two processes tell."""
    files = tmp_path_factory.mktemp("metrics")
    told = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.services.told"],
            stdin=subprocess.PIPE,
            cwd=ROOT,
            env=os.environ | {FOLDER: str(files)},
        )
        for _ in range(2)
    ]
    running = Exporter(MetricsSettings(port=0), files)
    yield f"127.0.0.1:{running.status().port}"
    running.stop()
    for process in told:
        process.communicate(timeout=20)


def text_of(exporter, until, timeout_s=60):
    """What is shown, as soon as it holds all that is wanted."""
    deadline, seen = time.monotonic() + timeout_s, ""
    while time.monotonic() < deadline:
        seen = httpx.get(f"http://{exporter}/metrics", trust_env=False).text
        if until(seen):
            return seen
        time.sleep(0.2)
    raise AssertionError(seen)


def told(text):
    return set(re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE))


@needs_prometheus
def test_prometheus_finds_nothing_wrong_with_any_metric(exporter):
    every = {family.name for family in families()}
    promtool("check", "metrics", stdin=text_of(exporter, lambda text: every <= told(text)))


@needs_prometheus
def test_a_metric_that_is_named_badly_is_seen():
    with pytest.raises(AssertionError, match="_total"):
        promtool(
            "check",
            "metrics",
            stdin="# HELP headrace_events Events.\n# TYPE headrace_events counter\nheadrace_events 1\n",
        )


@needs_prometheus
def test_every_query_of_every_dashboard_answers_with_data(exporter, tmp_path):
    queries = {
        (page.name, panel.title, line.expr)
        for page in dashboards()
        for panel in page.panels()
        for line in panel.lines
    }
    with scraping(tmp_path / "prometheus", exporter) as prometheus:
        deadline = time.monotonic() + 90
        while queries and time.monotonic() < deadline:
            queries = {query for query in queries if not prometheus.query(query[2])}
            time.sleep(0.5)
        assert not queries
        groups = prometheus.ask("rules")["groups"]
        assert {(rule["name"], rule["health"]) for group in groups for rule in group["rules"]} == {
            (rule["alert"], "ok") for group in rule_groups() for rule in group["rules"]
        }
        [target] = prometheus.ask("targets")["activeTargets"]
        assert target["health"] == "up"
