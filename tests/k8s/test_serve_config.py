"""`serveConfigV2` of the rendered manifest, deployed the way KubeRay does it, takes events, ranks and is watched."""

import json
import time

import httpx
import pytest
import ray
import yaml
from ray import serve

from services.actors import kill_actors
from services.dashboards.files import dashboards
from streaming.broker import free_port
from streaming.config import KafkaSettings
from streaming.kafka import ensure_topics, make_producer
from tests.k8s.rendering import config_map, ray_service, render
from tests.prometheus import needs_prometheus, promtool, rule_groups, scraping

ITEMS = 12


@pytest.fixture(scope="module")
def deployed(broker, ray_session, tmp_path_factory):
    """Where the API and the exporter of `base` listen; only where things are is this machine's."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    tmp_path = tmp_path_factory.mktemp("manifest")
    port, metrics = free_port(), free_port()
    (tmp_path / "headrace.toml").write_text(config_map(render("base"), "headrace-settings")["headrace.toml"])
    here = {
        "HEADRACE_DATA_DIR": str(tmp_path / "data"),
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": broker,
        "HEADRACE_KAFKA__ITEMS_TOPIC": "manifest.items",
        "HEADRACE_STREAMING__SOURCES": json.dumps([{"topic": "manifest.events"}]),
        "HEADRACE_STREAMING__SNAPSHOTS__URL": f"file://{tmp_path}/snapshots",
        "HEADRACE_STREAMING__MAP_SIZE_GIB": "0.1",
        "HEADRACE_SERVING__PORT": str(port),
        "HEADRACE_METRICS__PORT": str(metrics),
    }
    config = yaml.safe_load(ray_service(render("base"))["spec"]["serveConfigV2"])
    config["http_options"]["port"] = port
    for application in config["applications"]:
        application["args"]["settings"] = str(tmp_path / "headrace.toml")
        application["runtime_env"] = {"env_vars": here}  # a pod's own variables, there
    ensure_topics(KafkaSettings(bootstrap_servers=broker, items_topic="manifest.items"), ["manifest.events"])
    serve.shutdown()
    dashboard = f"http://{ray._private.worker._global_node.webui_url}"
    ServeSubmissionClient(dashboard).deploy_applications(config)
    yield f"127.0.0.1:{port}", f"127.0.0.1:{metrics}"
    serve.shutdown()
    kill_actors()


def ask(http, method, path, until, timeout_s=150, **request):
    """Ask until the answer is as wanted."""
    deadline, seen = time.monotonic() + timeout_s, None
    while time.monotonic() < deadline:
        try:
            seen = http.request(method, path, **request)
            if seen.status_code < 300 and until(seen):
                return seen.json() if "json" in seen.headers.get("content-type", "") else seen.text
        except httpx.HTTPError as error:
            seen = error
        time.sleep(0.2)
    raise AssertionError(f"{path}: {seen!r} {getattr(seen, 'text', '')[:500]}")


def test_the_applications_of_the_manifest_serve(deployed, broker):
    producer = make_producer(KafkaSettings(bootstrap_servers=broker))
    for item in range(ITEMS):
        value = json.dumps({"item_id": f"i{item}", "title": f"Chair number {item}"}).encode()
        producer.send("manifest.items", value, key=f"i{item}".encode())
    producer.flush(timeout=20)
    producer.close()
    with httpx.Client(base_url=f"http://{deployed[0]}", timeout=10, trust_env=False) as http:
        ask(http, "GET", "/-/healthz", lambda answer: True)  # what the pod's readiness asks
        ask(http, "GET", "/readyz", lambda answer: True)
        stats = ask(http, "GET", "/v1/stats", lambda answer: answer.json().get("layout"))
        assert stats["layout"]["settled"]
        event = {"user_id": "u1", "item_id": "i3", "type": "view"}
        ask(http, "POST", "/v1/events", lambda answer: True, json={"events": [event]})
        state = ask(http, "GET", "/v1/users/u1", lambda answer: answer.json().get("total"))
        assert state["total"] >= 1
        ranked = ask(
            http, "GET", "/v1/recommendations/u1?k=5", lambda answer: len(answer.json()["items"]) == 5
        )
        assert "i3" not in [item["item_id"] for item in ranked["items"]]


# what a system shows that has taken events and ranked for a while; no model is trained in that time
SHOWN = {
    "overview": {"Events", "Age of events when they count", "Requests", "Actors down", "Records behind"},
    "streaming": {
        "Outcomes",
        "Records read",
        "Applying",
        "Users",
        "Catalogue",
        "Processes that tell metrics",
    },
    "training": {"Phase"},
    "serving": {"By route", "Median by route", "Stages, median", "Items that can be recommended"},
}


@needs_prometheus
def test_prometheus_scrapes_it_and_the_dashboards_show_it(deployed, tmp_path):
    api, exporter = deployed
    with (
        scraping(tmp_path / "prometheus", exporter) as prometheus,
        httpx.Client(base_url=f"http://{api}", timeout=10, trust_env=False) as http,
    ):
        ask(http, "GET", "/v1/stats", lambda answer: exporter in listening(answer.json()))
        promtool("check", "metrics", stdin=httpx.get(f"http://{exporter}/metrics", trust_env=False).text)
        missing = dict(SHOWN)
        deadline = time.monotonic() + 90
        while any(missing.values()) and time.monotonic() < deadline:
            event = {"user_id": "u2", "item_id": "i5", "type": "view"}
            ask(http, "POST", "/v1/events", lambda answer: True, json={"events": [event]})
            ask(http, "GET", "/v1/recommendations/u2?k=5", lambda answer: True)
            missing = {page.name: missing[page.name] - set(seen(prometheus, page)) for page in dashboards()}
        assert not any(missing.values()), missing
        groups = prometheus.ask("rules")["groups"]
        assert {(rule["name"], rule["health"]) for group in groups for rule in group["rules"]} == {
            (rule["alert"], "ok") for group in rule_groups() for rule in group["rules"]
        }
        assert {t["health"] for t in prometheus.ask("targets")["activeTargets"]} == {"up"}
        assert [
            series for series in prometheus.query("ALERTS") if "Gone" in series["metric"]["alertname"]
        ] == []


def listening(stats):
    """Where the exporters listen, for who wants to know of `GET /v1/stats`."""
    return [f"{one['host']}:{one['port']}" for one in stats.get("metrics", {}).get("exporters", [])]


def seen(prometheus, page):
    """Titles of the panels of a page all of whose queries give data; a query that fails is an error."""
    for panel in page.panels():
        if all(prometheus.query(line.expr) for line in panel.lines):
            yield panel.title
