"""`serveConfigV2` of the rendered manifest, deployed the way KubeRay does it, takes events and ranks them."""

import json
import time

import httpx
import pytest
import ray
import yaml
from ray import serve

from services.actors import kill_actors
from streaming.broker import free_port
from streaming.config import KafkaSettings
from streaming.kafka import ensure_topics, make_producer
from tests.k8s.rendering import config_map, ray_service, render

ITEMS = 12


@pytest.fixture
def deployed(broker, ray_session, tmp_path):
    """Base URL of the API, as the manifest of `base` makes it; only where things are is this machine's."""
    from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

    port = free_port()
    (tmp_path / "headrace.toml").write_text(config_map(render("base"), "headrace-settings")["headrace.toml"])
    here = {
        "HEADRACE_DATA_DIR": str(tmp_path / "data"),
        "HEADRACE_KAFKA__BOOTSTRAP_SERVERS": broker,
        "HEADRACE_KAFKA__ITEMS_TOPIC": "manifest.items",
        "HEADRACE_STREAMING__SOURCES": json.dumps([{"topic": "manifest.events"}]),
        "HEADRACE_STREAMING__SNAPSHOTS__URL": f"file://{tmp_path}/snapshots",
        "HEADRACE_STREAMING__MAP_SIZE_GIB": "0.1",
        "HEADRACE_SERVING__PORT": str(port),
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
    yield f"http://127.0.0.1:{port}"
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
    with httpx.Client(base_url=deployed, timeout=10, trust_env=False) as http:
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
