"""Deployment files: they parse, agree with the project, and fit the schemas of what reads them."""

import os
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

ROOT = Path(__file__).parents[1]
BASE = ROOT / "k8s" / "base"
CRDS = Path(os.environ.get("HEADRACE_SHARED", ROOT.parent / "shared")) / "crds"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def ray_service() -> dict[str, Any]:
    return documents(BASE / "rayservice.yaml")[0]


def pod_templates() -> list[dict[str, Any]]:
    cluster = ray_service()["spec"]["rayClusterConfig"]
    return [group["template"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def test_every_manifest_parses_and_kustomize_names_only_files_that_exist() -> None:
    for path in sorted(ROOT.glob("k8s/**/*.yaml")):
        assert documents(path), path
    kustomization = documents(BASE / "kustomization.yaml")[0]
    generated = [name for entry in kustomization["configMapGenerator"] for name in entry["files"]]
    for name in (*kustomization["resources"], *kustomization["configurations"], *generated):
        assert (BASE / name).is_file(), name


def test_versions_agree_with_the_project() -> None:
    version = PROJECT["version"]
    kustomization = documents(BASE / "kustomization.yaml")[0]
    assert [image["newTag"] for image in kustomization["images"]] == [version]
    compose = documents(ROOT / "compose.yaml")[0]
    assert compose["services"]["headrace"]["image"] == f"headrace:{version}"
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"ARG VERSION={version}\n" in dockerfile
    assert f"python:{'${PYTHON}'}-slim" in dockerfile
    assert PROJECT["requires-python"] == f">={re.search(r'ARG PYTHON=(.+)', dockerfile)[1]}"  # type: ignore[index]
    pins = (ROOT / "constraints.txt").read_text()
    ray = re.search(r"^ray(?:\[[^]]*\])?==(.+)$", pins, re.MULTILINE)
    assert ray is not None
    assert ray_service()["spec"]["rayClusterConfig"]["rayVersion"] == ray[1]


def test_the_two_applications_are_those_of_the_code() -> None:
    serve = yaml.safe_load(ray_service()["spec"]["serveConfigV2"])
    code = (ROOT / "services" / "applications.py").read_text()
    assert [app["name"] for app in serve["applications"]] == ["pipeline", "api"]
    assert [app["route_prefix"] for app in serve["applications"]] == [None, "/"]
    mounts = [
        mount["mountPath"]
        for pod in pod_templates()
        for mount in pod["spec"]["containers"][0]["volumeMounts"]
    ]
    for app in serve["applications"]:
        module, builder = app["import_path"].split(":")
        assert module == "services.applications"
        assert f"def {builder}(args" in code
        folder, name = os.path.split(app["args"]["settings"])
        assert mounts.count(folder) == 2  # on the head and on the worker
        assert (BASE / name).is_file()


def test_the_settings_of_the_deployment_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    from services.settings import load_settings

    for name in [name for name in os.environ if name.startswith(("HEADRACE_", "KAFKA_"))]:
        monkeypatch.delenv(name)
    settings = load_settings(BASE / "headrace.toml")
    worker = pod_templates()[1]["spec"]["containers"][0]
    assert str(settings.data_dir) in [mount["mountPath"] for mount in worker["volumeMounts"]]
    assert settings.serving.host == "0.0.0.0"
    assert settings.serving.port in [port["containerPort"] for port in worker["ports"]]


def test_nothing_runs_as_root_or_may_become_it() -> None:
    for template in pod_templates():
        assert template["spec"]["securityContext"]["runAsNonRoot"] is True
        assert template["spec"]["securityContext"]["runAsUser"] == 10001
        assert template["spec"]["enableServiceLinks"] is False
        for container in template["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()


def test_compose_publishes_on_loopback_only_and_keeps_its_data() -> None:
    compose = documents(ROOT / "compose.yaml")[0]
    ports = [port for service in compose["services"].values() for port in service["ports"]]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    kafka, headrace = compose["services"]["kafka"], compose["services"]["headrace"]
    inside = headrace["environment"]["HEADRACE_KAFKA__BOOTSTRAP_SERVERS"]
    assert f"INSIDE://{inside}" in kafka["environment"]["KAFKA_ADVERTISED_LISTENERS"].split(",")
    assert headrace["depends_on"]["kafka"]["condition"] == "service_healthy"
    assert set(compose["volumes"]) == {"kafka-data", "headrace-data"}


def test_the_ray_service_fits_the_schema_of_kuberay() -> None:
    path = CRDS / "ray.io_rayservices.yaml"
    if not path.is_file():
        pytest.skip(f"no custom resource definitions in {CRDS} (set HEADRACE_SHARED)")
    definition = documents(path)[0]
    schemas = {
        version["name"]: version["schema"]["openAPIV3Schema"] for version in definition["spec"]["versions"]
    }
    schema = strict(schemas["v1"])
    jsonschema.validate(ray_service(), schema)

    misspelt = ray_service()
    misspelt["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["contianers"] = []
    with pytest.raises(jsonschema.ValidationError, match="contianers"):  # the check can fail
        jsonschema.validate(misspelt, schema)


def strict(schema: Any) -> Any:
    """A Kubernetes structural schema as a JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: strict(part) for name, part in schema.items()}
    properties = made.get("properties")
    if isinstance(properties, dict) and made.get("type") == "object":
        preserve = made.get("x-kubernetes-preserve-unknown-fields", False)
        made.setdefault("additionalProperties", preserve)
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made
