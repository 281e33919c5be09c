"""Everything that is rendered fits the schema of what reads it; nothing in it is unknown there."""

import copy
import functools
import json
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml

from tests.k8s.rendering import CRDS, K8S, RENDERED, Document, name_of, of_kind, render

# no schema of these is at hand: held against the fields that we use
OWN_SCHEMAS = {
    "Certificate": {
        "type": "object",
        "required": ["secretName", "dnsNames", "issuerRef"],
        "additionalProperties": False,
        "properties": {
            "secretName": {"type": "string"},
            "dnsNames": {"type": "array", "items": {"type": "string"}, "minItems": 1},
            "issuerRef": {"type": "object", "required": ["name", "kind"]},
            "privateKey": {"type": "object"},
            "duration": {"type": "string", "pattern": "^[0-9]+h$"},
            "renewBefore": {"type": "string", "pattern": "^[0-9]+h$"},
        },
    }
}
KUBERNETES = "1.37"
OPERATORS = ("ray.io", "kafka.strimzi.io", "monitoring.coreos.com", "keda.sh", "cert-manager.io")


def is_custom(document: Document) -> bool:
    return document["apiVersion"].split("/")[0] in OPERATORS


def distinct() -> list[Document]:
    """Every document of every variant, each once."""
    every = {json.dumps(d, sort_keys=True): d for variant in RENDERED for d in render(variant)}
    return list(every.values())


def test_built_in_kinds_fit_kubernetes_strictly():
    checked = [document for document in distinct() if not is_custom(document)]
    assert {document["kind"] for document in checked} >= {"StatefulSet", "NetworkPolicy", "Ingress"}
    for document in checked:
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_an_unknown_field_of_a_built_in_kind_is_seen():
    [budget, *_] = of_kind(render("base"), "PodDisruptionBudget")
    misspelt = copy.deepcopy(budget)
    misspelt["spec"]["maxUnavailabel"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="maxUnavailabel"):
        kubernetes_validate.validate(misspelt, KUBERNETES, strict=True)


def test_custom_resources_fit_the_schemas_of_their_operators():
    checked = [document for document in distinct() if is_custom(document)]
    assert {document["apiVersion"].split("/")[0] for document in checked} == set(OPERATORS)
    for document in checked:
        problems = sorted(validator(document).iter_errors(document), key=str)
        assert not problems, f"{name_of(document)}: {problems[0].json_path}: {problems[0].message}"


def test_an_unknown_field_of_a_custom_resource_is_seen():
    [service] = of_kind(render("base"), "RayService")
    misspelt = copy.deepcopy(service)
    misspelt["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["contianers"] = []
    with pytest.raises(jsonschema.ValidationError, match="contianers"):
        validator(service).validate(misspelt)


def test_every_manifest_is_part_of_a_kustomization():
    for folder in (path.parent for path in K8S.rglob("kustomization.yaml")):
        kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
        text = str(kustomization)
        for file in folder.glob("*.yaml"):
            assert file.name == "kustomization.yaml" or file.name in text, file


def validator(document: Document) -> Any:
    if document["kind"] in OWN_SCHEMAS:
        whole = {"properties": {"spec": OWN_SCHEMAS[document["kind"]]}}
        return jsonschema.Draft202012Validator(whole)
    return _from_crd(document["apiVersion"], document["kind"])


@functools.cache
def _from_crd(api_version: str, kind: str) -> Any:
    if not CRDS.is_dir():
        pytest.skip(f"no custom resource definitions in {CRDS} (set HEADRACE_SHARED)")
    group, version = api_version.split("/")
    path = CRDS / f"{group}_{kind.lower()}s.yaml"
    definition = yaml.load(path.read_text(), yaml.CSafeLoader)  # a megabyte: the other loader takes seconds
    schemas = {
        v["name"]: v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["served"]
    }
    assert version in schemas, f"{kind} is served as {sorted(schemas)}, not as {version}"
    return jsonschema.Draft202012Validator(closed(schemas[version]))


def closed(schema: Any) -> Any:
    """A Kubernetes structural schema as a JSON schema that refuses unknown fields."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    made = {name: closed(part) for name, part in schema.items()}
    if isinstance(made.get("properties"), dict) and made.get("type") == "object":
        made.setdefault("additionalProperties", made.get("x-kubernetes-preserve-unknown-fields", False))
        if "metadata" in made["properties"] and "kind" in made["properties"]:
            made["properties"]["metadata"] = {"type": "object"}
    if made.pop("nullable", False) and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    return made
