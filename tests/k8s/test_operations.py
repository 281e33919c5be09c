"""What docs/operations.md tells people to apply and to name is what is there."""

import functools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from tests.k8s.rendering import (
    K8S,
    PROJECT,
    ROOT,
    containers,
    groups,
    kustomize,
    name_of,
    of_kind,
    pods,
    render,
    values_at,
)
from tests.k8s.test_policy import container_problems, problems_of
from tests.runbook import TEXT, commands, pieces


def test_the_job_that_tidies_holds_to_the_policy_and_finds_the_volume():
    [job] = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(apiVersion: batch.*?)```", TEXT, re.DOTALL)
    ]
    kubernetes_validate.validate(job, "1.37", strict=True)
    pod = job["spec"]["template"]
    [container] = pod["spec"]["containers"]
    assert container_problems(container, initial=True) == []  # a Job needs no probes
    pod["spec"]["containers"] = []
    assert problems_of(pod) == []
    [volume] = pod["spec"]["volumes"]
    claims = {d["metadata"]["name"] for d in of_kind(render("prod"), "PersistentVolumeClaim")}
    assert volume["persistentVolumeClaim"]["claimName"] in claims
    assert container["image"] == f"headrace:{PROJECT['version']}"


def test_the_overlay_of_ones_own_renders(tmp_path):
    [block] = re.findall(r"```yaml\n# k8s/overlays/mine/kustomization.yaml\n(.*?)```", TEXT, re.DOTALL)
    mine = tmp_path / "k8s" / "overlays" / "mine"
    shutil.copytree(K8S, tmp_path / "k8s")
    mine.mkdir()
    (mine / "kustomization.yaml").write_text(block)
    rendered = kustomize(mine)
    [environment] = [d for d in rendered if name_of(d).startswith("ConfigMap headrace-environment")]
    assert environment["data"]["HEADRACE_STREAMING__SNAPSHOTS__URL"] == "s3://my-bucket/headrace"
    [certificate] = of_kind(rendered, "Certificate")
    assert certificate["spec"]["dnsNames"] == ["shop.example.org"]


def test_every_part_it_names_is_there():
    for path in set(re.findall(r"`(k8s/[\w./-]+)`", TEXT)):
        assert (ROOT / path).exists(), path
    namespaces = {d["metadata"]["name"] for v in ("dev", "prod") for d in of_kind(render(v), "Namespace")}
    assert set(re.findall(r"--namespace (\S+)", TEXT)) <= namespaces


KUBECTL = str(Path(sys.executable).with_name("kubectl"))
CALLS = [words for line in commands("kubectl") for words in pieces(line, "kubectl")]


def kubectl(*words, cwd=None):
    done = subprocess.run(
        [KUBECTL, *words],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=cwd,
    )
    assert done.returncode == 0, (words, done.stderr)
    return done.stdout


@functools.cache
def flags_of(*sub):
    """The long flags of a sub-command, and of all of them."""
    told = kubectl(*sub, "--help") + kubectl("options")
    assert (
        f"kubectl {' '.join(sub)} " in told
    )  # a sub-command that is not known shows the help of what is above it
    return set(re.findall(r"(--[a-z][a-z-]*)[ =]", told))


def sub_command(words):
    deeper = {"create": 3, "config": 2}.get(words[1], 1)
    return tuple(words[1 : 1 + (2 if words[2] == "namespace" else deeper)])


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_kubectl_knows_every_command_and_flag(words):
    given = words[: words.index("--")] if "--" in words else words
    known = flags_of(*sub_command(words))
    assert {word.partition("=")[0] for word in given if word.startswith("--")} <= known


def secrets_read():
    """Name → keys of every secret that the manifests read."""
    found = {}
    for variant in ("prod", "everything"):
        for reference in values_at(list(render(variant)), "secretKeyRef"):
            found.setdefault(reference["name"], set()).add(reference["key"])
        for projected in values_at(list(render(variant)), "projected"):
            for source in projected["sources"]:
                if "secret" in source:
                    keys = {item["key"] for item in source["secret"]["items"]}
                    found.setdefault(source["secret"]["name"], set()).update(keys)
    return found


def test_the_secrets_it_makes_are_those_that_pods_read(tmp_path):
    (tmp_path / "ca.crt").write_text("-----BEGIN CERTIFICATE-----")
    made = {}
    for words in CALLS:
        if words[1:4] == ["create", "secret", "generic"]:
            plain = [word for word in words[1:] if word not in ("--dry-run=client", "--output", "yaml")]
            secret = json.loads(kubectl(*plain, "--dry-run=client", "--output=json", cwd=tmp_path))
            made.setdefault(secret["metadata"]["name"], set()).update(secret["data"])
    assert made == {name: keys for name, keys in secrets_read().items() if name in made}
    assert made.keys() == secrets_read().keys()


def test_every_resource_it_names_is_there():
    rendered = render("prod")
    groups_of = {name for name in groups(rendered) if name != "head"}
    labels = {
        f"{key}={value}"
        for pod in pods(rendered).values()
        for key, value in pod["metadata"]["labels"].items()
    }
    labels |= {f"ray.io/group={group}" for group in groups_of}  # by KubeRay
    names = {
        "rayservice": {d["metadata"]["name"] for d in of_kind(rendered, "RayService")},
        "service": {
            f"{d['metadata']['name']}-serve-svc" for d in of_kind(rendered, "RayService")
        },  # by KubeRay
        "persistentvolumeclaim": {d["metadata"]["name"] for d in of_kind(rendered, "PersistentVolumeClaim")},
        "secret": set(secrets_read()),
    }
    held = {container["name"] for pod in pods(rendered).values() for container in containers(pod)}
    for words in CALLS:
        line = " ".join(words)
        for kind, name in re.findall(r"\b([a-z]+)/([a-z-]+)", line):
            if kind in names:
                assert name in names[kind], line
        for kind, name in re.findall(r"(?:get|delete) ([a-z]+) ((?!-)[a-z-]+)", line):
            assert name in names[kind], line
        for selector in re.findall(r"--selector (\S+)", line):
            assert selector in labels, line
        for container in re.findall(r"--container (\S+)", line):
            assert container in held, line
        for folder in re.findall(r"--kustomize (\S+)", line):
            assert (ROOT / folder / "kustomization.yaml").is_file(), line


def test_a_variable_of_ones_own_rolls_new_pods(tmp_path):
    """What the section on secrets says of `ROTATED`: another value is another ConfigMap, and so other pods."""
    mine = tmp_path / "k8s" / "overlays" / "mine"
    shutil.copytree(K8S, tmp_path / "k8s")
    mine.mkdir()
    templates = []
    for day in ("2026-11-23", "2026-11-24"):
        generator = {"name": "headrace-environment", "namespace": "headrace", "behavior": "merge"}
        generator["literals"] = [f"ROTATED={day}"]
        kustomization = {"resources": ["../prod"], "configMapGenerator": [generator]}
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        templates.append(
            [
                pod["spec"]["containers"][0]["envFrom"]
                for pod in pods(kustomize(mine)).values()
                if "envFrom" in pod["spec"]["containers"][0]
            ]
        )
    assert templates[0]
    assert all(before != after for before, after in zip(*templates, strict=True))


def test_the_image_it_pushes_is_the_version_of_the_project():
    tags = re.findall(r"REGISTRY/headrace:([\d.]+)", TEXT)
    assert tags
    assert set(tags) == {PROJECT["version"]}
