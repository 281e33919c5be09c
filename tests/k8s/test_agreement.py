"""The manifests say what the code says: versions, settings, variables, ports, secrets, paths, metrics."""

import os
import re
import tomllib
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from services.settings import Settings, load_settings
from tests.k8s.rendering import (
    K8S,
    PROJECT,
    RENDERED,
    ROOT,
    Document,
    config_map,
    containers,
    environment,
    groups,
    of_kind,
    pinned,
    pods,
    ray_service,
    render,
    values_at,
)

PACKAGES = ("streaming", "training", "serving", "services")
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
WORKERS = ("cpu", "gpu")
# read by the libraries that the code stands on
AWS = {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
HUB = {"HF_HUB_OFFLINE", "TOKENIZERS_PARALLELISM"}


def code() -> str:
    return "\n".join(path.read_text() for name in PACKAGES for path in sorted((ROOT / name).rglob("*.py")))


def settings_of(variant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Settings:
    """What the pods of a variant would read."""
    for name in [name for name in os.environ if name.startswith(("HEADRACE_", "KAFKA_"))]:
        monkeypatch.delenv(name)
    for name, value in environment(render(variant), "cpu").items():
        if name.startswith("HEADRACE_") and value is not None:
            monkeypatch.setenv(name, value)
    path = tmp_path / "headrace.toml"
    path.write_text(config_map(render(variant), "headrace-settings")["headrace.toml"])
    return load_settings(path)


def test_versions_agree_with_the_project():
    version, ray = PROJECT["version"], pinned("ray")
    for variant in RENDERED:
        cluster = ray_service(render(variant))["spec"]["rayClusterConfig"]
        assert cluster["rayVersion"] == ray
        ours = {
            c["image"]
            for name, pod in pods(render(variant)).items()
            if "ray" in name
            for c in containers(pod)
        }
        assert ours <= {f"headrace:{version}", f"headrace:{version}-cuda"}
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    assert compose["services"]["headrace"]["image"] == f"headrace:{version}"
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"ARG VERSION={version}\n" in dockerfile
    python = re.search(r"ARG PYTHON=(\d+\.\d+)", dockerfile)
    assert python is not None
    assert PROJECT["requires-python"] == f">={python[1]}"


def test_the_two_applications_are_those_of_the_code():
    builders = (ROOT / "services" / "applications.py").read_text()
    for variant in RENDERED:
        serve = yaml.safe_load(ray_service(render(variant))["spec"]["serveConfigV2"])
        assert [app["name"] for app in serve["applications"]] == ["pipeline", "api"]
        assert [app["route_prefix"] for app in serve["applications"]] == [None, "/"]
        for app in serve["applications"]:
            module, builder = app["import_path"].split(":")
            assert module == "services.applications"
            assert f"def {builder}(args" in builders
            folder, name = os.path.split(app["args"]["settings"])
            assert name in config_map(render(variant), "headrace-settings")
            for group in groups(render(variant)).values():
                assert folder in mounts(group)


@pytest.mark.parametrize("variant", RENDERED)
def test_the_settings_are_accepted_and_fit_the_pods(variant, monkeypatch, tmp_path):
    settings = settings_of(variant, monkeypatch, tmp_path)
    kafka, found = settings.kafka, groups(render(variant))
    assert settings.serving.host == "0.0.0.0"
    for name in found.keys() & set(WORKERS):
        mounted = mounts(found[name])
        assert str(settings.data_dir) in mounted
        assert mounted[str(settings.data_dir)]["subPathExpr"] == "$(RAY_CLUSTER_NAME)"  # a folder per cluster
        assert settings.serving.port in [port["containerPort"] for port in container_ports(found[name])]
        for file in (kafka.sasl_password_file, kafka.ssl_cafile):
            assert file is None or str(file) in projected_files(found[name])
        url = settings.streaming.snapshots.url or ""
        assert not url.startswith("file://") or url.removeprefix("file://") in mounted
        assert settings.metrics.enabled
        assert settings.metrics.host == "0.0.0.0"
        [exporter] = [port for port in container_ports(found[name]) if port["name"] == "metrics"]
        assert settings.metrics.port == exporter["containerPort"]
    serve = yaml.safe_load(ray_service(render(variant))["spec"]["serveConfigV2"])
    assert serve["http_options"] == {"host": settings.serving.host, "port": settings.serving.port}
    if settings.training.use_gpu:
        assert found["gpu"]["maxReplicas"] >= settings.training.num_workers


def test_every_pod_has_the_folder_for_metrics_before_ray_starts():
    for group in groups(render("base")).values():  # the head too: it imports the code that defines them
        mount = mounts(group)[environment(render("base"), "cpu")["PROMETHEUS_MULTIPROC_DIR"]]
        [volume] = [v for v in group["template"]["spec"]["volumes"] if v["name"] == mount["name"]]
        assert "emptyDir" in volume
        assert not mount.get("readOnly")


def container_ports(group: Document) -> list[Document]:
    return list(group["template"]["spec"]["containers"][0]["ports"])


def mounts(group: Document) -> dict[str, Document]:
    return {mount["mountPath"]: mount for mount in group["template"]["spec"]["containers"][0]["volumeMounts"]}


def projected_files(group: Document) -> set[str]:
    folders = {mount["name"]: path for path, mount in mounts(group).items()}
    return {
        f"{folders[volume['name']]}/{item['path']}"
        for volume in group["template"]["spec"]["volumes"]
        for source in volume.get("projected", {}).get("sources", [])
        for item in source["secret"]["items"]
    }


def test_every_variable_is_read_by_something():
    ray = find_spec("ray")
    assert ray is not None
    [folder] = ray.submodule_search_locations or ()
    ours = code()
    libraries = "\n".join(
        path.read_text()
        for path in [*Path(folder, "serve", "_private").glob("*.py"), *Path(folder, "_private").glob("*.py")]
    )
    seen: set[str] = set()
    for variant in RENDERED:
        for group in groups(render(variant)):
            seen |= environment(render(variant), group).keys()
    assert "HEADRACE_SERVING__ADMIN_API_KEY" in seen
    for name in seen - AWS - HUB:
        if name.startswith("HEADRACE_") and "__" in name:
            assert is_setting(name), name
        elif name == "RAY_CLUSTER_NAME":  # for the folder on the volume
            assert f"$({name})" in (K8S / "base" / "rayservice.yaml").read_text()
        else:
            assert re.search(rf"\b{name}\b", ours) or re.search(rf"\b{name}\b", libraries), name


def is_setting(variable: str) -> bool:
    model: Any = Settings
    for part in variable.removeprefix("HEADRACE_").lower().split("__"):
        fields = getattr(model, "model_fields", {})
        if part not in fields:
            return False
        model = fields[part].annotation
    return True


def test_a_variable_that_is_no_setting_is_seen():
    assert is_setting("HEADRACE_KAFKA__SASL_PASSWORD_FILE")
    assert not is_setting("HEADRACE_KAFKA__SASL_PASSWORD_FILES")


def test_every_secret_is_made_by_something_or_by_the_operator():
    for variant in RENDERED:
        documents = render(variant)
        made = {d["metadata"]["name"] for d in of_kind(documents, "KafkaUser")}
        made |= {f"{d['metadata']['name']}-cluster-ca-cert" for d in of_kind(documents, "Kafka")}
        made |= {d["spec"]["secretName"] for d in of_kind(documents, "Certificate")}
        by_hand = set(re.findall(r"kubectl create secret generic (\S+)", OPERATIONS))
        used: set[str] = set()
        for reference in values_at(list(documents), "secretKeyRef"):
            used.add(reference["name"])
            assert f"--from-literal={reference['key']}=" in OPERATIONS
        for source in values_at(list(documents), "secret"):
            if not source["optional"] or of_kind(
                documents, "Kafka"
            ):  # without a Kafka of ours they are one's own
                used.add(source["name"])
        for ingress in of_kind(documents, "Ingress"):
            used |= {tls["secretName"] for tls in ingress["spec"]["tls"]}
        assert "headrace-redis" in used
        assert used <= made | by_hand, used - made - by_hand


def test_network_policies_name_every_port_that_is_listened_on():
    import ray.serve._private.constants as serve

    documents = render("everything")
    listened: dict[str, set[tuple[int, int]]] = {"head": {(6379, 6379), (8265, 8265)}, "worker": set()}
    for name, group in groups(documents).items():
        role, params = "head" if name == "head" else "worker", group["rayStartParams"]
        for port in ("node-manager-port", "object-manager-port", "dashboard-agent-grpc-port"):
            listened[role].add((int(params[port]),) * 2)
        listened[role].add((int(params["dashboard-agent-listen-port"]),) * 2)
        listened[role].add((int(params["metrics-export-port"]),) * 2)
        listened[role].add((int(params["min-worker-port"]), int(params["max-worker-port"])))
        [sysctl] = group["template"]["spec"]["securityContext"]["sysctls"]
        low, high = map(int, sysctl["value"].split())
        listened[role].add((low, high))  # Serve between deployments, gloo, NCCL: whatever the kernel gives
        listened[role].add(
            (serve.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT, serve.RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT)
        )
        listened[role].add(
            (serve.RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT, serve.RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT)
        )
        for port in container_ports(group):
            listened[role].add((port["containerPort"],) * 2)
        ranges = sorted(listened[role])
        assert all(a[1] < b[0] for a, b in pairwise(ranges)), f"{name}: ports overlap: {ranges}"
    for role, ranges in listened.items():
        labels = {"app.kubernetes.io/name": "headrace", "app.kubernetes.io/component": role}
        allowed = ingress_ports(documents, labels)
        missing = [r for r in ranges if not any(low <= r[0] and r[1] <= high for low, high in allowed)]
        assert not missing, f"{role}: {missing} are in no network policy"


def ingress_ports(documents: tuple[Document, ...], labels: Document) -> set[tuple[int, int]]:
    return {
        (port["port"], port.get("endPort", port["port"]))
        for policy in of_kind(documents, "NetworkPolicy")
        if policy["spec"]["podSelector"].get("matchLabels", {"": ""}).items() <= labels.items()
        for rule in policy["spec"].get("ingress", [])
        for port in rule["ports"]
    }


@pytest.mark.parametrize("variant", RENDERED)
def test_whom_the_settings_talk_to_the_network_lets_through(variant, monkeypatch, tmp_path):
    settings = settings_of(variant, monkeypatch, tmp_path)
    outward = {
        port["port"]
        for policy in of_kind(render(variant), "NetworkPolicy")
        for rule in policy["spec"].get("egress", [])
        for port in rule["ports"]
    }
    assert {
        int(server.rsplit(":", 1)[1]) for server in settings.kafka.bootstrap_servers.split(",")
    } <= outward
    assert {53, 6379} <= outward
    url = settings.streaming.snapshots.url or ""
    assert not url.startswith("s3://") or 443 in outward
    collector = urlsplit(settings.streaming.traces.endpoint or "").port
    assert collector is None or collector in outward


def test_what_is_not_named_is_denied():
    [deny] = [
        d for d in of_kind(render("base"), "NetworkPolicy") if d["metadata"]["name"].endswith("default-deny")
    ]
    assert deny["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert not {"ingress", "egress"} & deny["spec"].keys()
    [expression] = deny["spec"]["podSelector"]["matchExpressions"]
    names = {pod["metadata"]["labels"]["app.kubernetes.io/name"] for pod in pods(render("base")).values()}
    assert set(expression["values"]) == names


def test_paths_that_are_asked_exist_in_the_code():
    from ray.dashboard import http_server_agent

    app = "\n".join(path.read_text() for path in (ROOT / "serving").rglob("*.py"))
    head = Path(str(http_server_agent.__file__)).with_name("http_server_head.py").read_text()
    ray = Path(str(http_server_agent.__file__)).read_text() + head  # open without a token there
    for path in {probe["path"] for probe in values_at(list(render("everything")), "httpGet")}:
        assert f'"{path}"' in ray, path
    for monitor in of_kind(render("prod"), "PodMonitor"):
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            assert endpoint.get("path", "/metrics") in app
    [ingress] = of_kind(render("prod"), "Ingress")
    for path in [path["path"] for path in ingress["spec"]["rules"][0]["http"]["paths"]]:
        assert f'"{path}' in app, path


def test_monitors_ask_ports_that_pods_have():
    names = {p["name"] for g in groups(render("prod")).values() for p in container_ports(g)}
    asked = {
        e["port"] for m in of_kind(render("prod"), "PodMonitor") for e in m["spec"]["podMetricsEndpoints"]
    }
    assert asked <= names


def test_kafka_users_may_do_what_the_product_does_and_no_more(monkeypatch, tmp_path):
    documents = render("prod")
    settings = settings_of("prod", monkeypatch, tmp_path)
    kafka = settings.kafka
    topics = {d["metadata"]["name"]: d["spec"] for d in of_kind(documents, "KafkaTopic")}
    events = {source.topic for source in settings.streaming.sources}
    assert topics.keys() == events | {kafka.items_topic, kafka.dead_letter_topic}
    assert topics[kafka.items_topic]["config"]["cleanup.policy"] == "compact"
    assert {spec["replicas"] for spec in topics.values()} == {kafka.replication_factor}
    granted = {
        user["metadata"]["name"]: {
            (acl["resource"]["type"], acl["resource"]["name"]): set(acl["operations"])
            for acl in user["spec"]["authorization"]["acls"]
        }
        for user in of_kind(documents, "KafkaUser")
    }
    assert granted[kafka.sasl_username or ""] == {
        **{("topic", topic): {"Describe", "DescribeConfigs", "Read", "Write"} for topic in events},
        ("topic", kafka.items_topic): {"Describe", "DescribeConfigs", "Read"},
        ("topic", kafka.dead_letter_topic): {"Describe", "DescribeConfigs", "Read", "Write"},
        ("group", kafka.group_id): {"Describe", "Read"},
    }
    assert granted["headrace-producer"] == {
        ("topic", topic): {"Describe", "Write"} for topic in events | {kafka.items_topic}
    }
    for user in of_kind(documents, "KafkaUser"):
        assert all(
            acl["resource"]["patternType"] == "literal" for acl in user["spec"]["authorization"]["acls"]
        )


def test_the_development_overlay_replicates_nothing(monkeypatch, tmp_path):
    assert settings_of("dev", monkeypatch, tmp_path).kafka.replication_factor == 1
    assert {topic["spec"]["replicas"] for topic in of_kind(render("dev"), "KafkaTopic")} == {1}
    [pool] = of_kind(render("dev"), "KafkaNodePool")
    assert (pool["spec"]["replicas"], pool["spec"]["roles"]) == (1, ["controller", "broker"])


def test_a_changed_setting_is_a_changed_pod():
    maps = [d["metadata"] for d in of_kind(render("prod"), "ConfigMap")]
    names = {found["name"] for found in maps if "grafana_dashboard" not in found.get("labels", {})}
    for name in names:
        assert re.search("-[0-9a-z]{10}$", name), name
    text = yaml.safe_dump(ray_service(render("prod")))
    for prefix in ("headrace-settings", "headrace-environment", "headrace-scripts"):
        [name] = [name for name in names if name.startswith(prefix)]
        assert f"name: {name}\n" in text


def test_images_carry_the_extras_that_the_settings_need():
    dockerfile = (ROOT / "Dockerfile").read_text()
    extras = re.search(r"ARG EXTRAS=(\S+)", dockerfile)
    assert extras is not None
    assert {"local", "s3", "otel"} <= set(extras[1].split(","))
    assert set(extras[1].split(",")) <= PROJECT["optional-dependencies"].keys()
    uid = re.search(r"^USER (\d+):(\d+)$", dockerfile, re.MULTILINE)
    assert uid is not None
    for group in groups(render("base")).values():
        security = group["template"]["spec"]["securityContext"]
        assert (security["runAsUser"], security["runAsGroup"]) == (int(uid[1]), int(uid[2]))


def test_compose_publishes_on_loopback_only_and_keeps_its_data():
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    kafka, headrace = compose["services"]["kafka"], compose["services"]["headrace"]
    inside = headrace["environment"]["HEADRACE_KAFKA__BOOTSTRAP_SERVERS"]
    assert f"INSIDE://{inside}" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert headrace["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert set(compose["volumes"]) == {"kafka-data", "headrace-data"}


def test_the_settings_file_is_toml():
    assert tomllib.loads((K8S / "base" / "headrace.toml").read_text())["data_dir"] == "/data"
