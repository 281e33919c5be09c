"""The pods hold to the restricted standard of pod security, and to what an operator expects beyond it."""

import copy
import re

import pytest

from tests.k8s.rendering import RENDERED, Document, containers, groups, of_kind, pods, ray_service, render

RESTRICTED_VOLUMES = {
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SAFE_SYSCTLS = {"net.ipv4.ip_local_port_range"}
SECRET_WORDS = re.compile(r"password|secret|token(?!izer)|api_?key|credential", re.IGNORECASE)


def problems_of(pod: Document) -> list[str]:
    """What is against the policy in a pod template, in words."""
    spec, found = pod["spec"], []
    found += [name for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name)]
    if spec.get("enableServiceLinks", True):
        found.append("service links put variables among ours")
    around = spec.get("securityContext", {})
    if around.get("runAsNonRoot") is not True or not around.get("runAsUser"):
        found.append("may run as root")
    if around.get("seccompProfile", {}).get("type") != "RuntimeDefault":
        found.append("no seccomp profile")
    found += [s["name"] for s in around.get("sysctls", []) if s["name"] not in SAFE_SYSCTLS]
    for volume in spec.get("volumes", []):
        [kind] = volume.keys() - {"name"}
        if kind not in RESTRICTED_VOLUMES:
            found.append(f"volume {volume['name']} is a {kind}")
        if kind == "emptyDir" and "sizeLimit" not in volume[kind]:
            found.append(f"volume {volume['name']} may fill the node")
    if not spec.get("topologySpreadConstraints") and spec.get("replicas", 1) > 1:
        found.append("not spread over nodes")
    initial = {c["name"] for c in spec.get("initContainers", [])}
    for container in containers(pod):
        found += [
            f"{container['name']}: {p}" for p in container_problems(container, container["name"] in initial)
        ]
    return found


def container_problems(container: Document, initial: bool) -> list[str]:
    found = []
    security = container.get("securityContext", {})
    if security.get("privileged") or security.get("allowPrivilegeEscalation") is not False:
        found.append("may gain privileges")
    if security.get("capabilities") != {"drop": ["ALL"]}:
        found.append("keeps capabilities")
    if security.get("readOnlyRootFilesystem") is not True:
        found.append("may write to its image")
    resources = container.get("resources", {})
    requested, limited = resources.get("requests", {}), resources.get("limits", {})
    found += [f"requests no {n}" for n in ("cpu", "memory", "ephemeral-storage") if n not in requested]
    found += [f"no limit of {n}" for n in ("memory", "ephemeral-storage") if n not in limited]
    if not re.search(r":[\w.-]+$", container["image"]) or container["image"].endswith(":latest"):
        found.append(f"image {container['image']} is not pinned")
    if not initial:
        found += [
            f"no {p}" for p in ("startupProbe", "livenessProbe", "readinessProbe") if p not in container
        ]
    for entry in container.get("env", []):
        if "value" in entry and SECRET_WORDS.search(entry["name"]) and not entry["name"].endswith("_FILE"):
            found.append(f"{entry['name']} is written out")
    if any(mount["mountPath"] == "/" for mount in container.get("volumeMounts", [])):
        found.append("mounts over the root")
    return found


@pytest.mark.parametrize("variant", RENDERED)
def test_pods_hold_to_the_policy(variant):
    found = {name: problems_of(pod) for name, pod in pods(render(variant)).items()}
    assert not any(found.values()), found


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda pod, c: c["securityContext"].pop("capabilities"), "keeps capabilities"),
        (lambda pod, c: c["securityContext"].update(readOnlyRootFilesystem=False), "may write to its image"),
        (lambda pod, c: c.update(image="headrace:latest"), "is not pinned"),
        (lambda pod, c: c["resources"]["limits"].pop("memory"), "no limit of memory"),
        (lambda pod, c: c.pop("livenessProbe"), "no livenessProbe"),
        (lambda pod, c: c["env"].append({"name": "REDIS_PASSWORD", "value": "x"}), "is written out"),
        (lambda pod, c: pod["spec"].update(hostNetwork=True), "hostNetwork"),
        (lambda pod, c: pod["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}), "hostPath"),
        (lambda pod, c: pod["spec"]["securityContext"].pop("seccompProfile"), "no seccomp profile"),
    ],
)
def test_the_policy_sees_what_is_against_it(change, problem):
    pod = copy.deepcopy(pods(render("base"))["ray cpu"])
    change(pod, pod["spec"]["containers"][0])
    [found] = problems_of(pod)
    assert problem in found


@pytest.mark.parametrize("variant", RENDERED)
def test_no_secret_is_in_the_manifests(variant):
    assert not of_kind(render(variant), "Secret")
    for config_map in of_kind(render(variant), "ConfigMap"):
        for name in config_map["data"]:
            if name.isupper():
                assert not SECRET_WORDS.search(name) or name.endswith("_FILE"), name


def test_namespaces_enforce_the_restricted_standard():
    for variant in ("dev", "prod"):
        [namespace] = of_kind(render(variant), "Namespace")
        assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
        placed = {d["metadata"].get("namespace") for d in render(variant) if d is not namespace}
        assert placed == {namespace["metadata"]["name"]}


def test_only_the_head_may_talk_to_the_kubernetes_api():
    for name, pod in pods(render("everything")).items():
        mounted = pod["spec"].get("automountServiceAccountToken", True)
        assert mounted == (name == "ray head"), name


def test_the_sidecar_of_the_autoscaler_is_as_restricted_as_the_rest():
    options = ray_service(render("base"))["spec"]["rayClusterConfig"]["autoscalerOptions"]
    assert options["version"] == "v2"
    sidecar = {
        "image": "x:1",
        "resources": options["resources"],
        "securityContext": options["securityContext"],
    }
    assert container_problems(sidecar, initial=True) == []


def test_every_pod_has_a_disruption_budget_and_is_spread():
    documents = render("base")
    budgets = [budget["spec"]["selector"] for budget in of_kind(documents, "PodDisruptionBudget")]
    for name, pod in pods(documents).items():
        matching = [budget for budget in budgets if selects(budget, pod["metadata"]["labels"])]
        assert len(matching) == 1, name  # an eviction fails where two match
    for name, group in groups(documents).items():
        assert group["template"]["spec"]["topologySpreadConstraints"], name


def selects(selector: Document, labels: Document) -> bool:
    wanted = selector.get("matchLabels", {}).items()
    for expression in selector.get("matchExpressions", []):
        assert expression["operator"] == "In"
        if labels.get(expression["key"]) not in expression["values"]:
            return False
    return wanted <= labels.items()
