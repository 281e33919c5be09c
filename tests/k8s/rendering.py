"""What `kubectl kustomize` makes of the manifests, as documents, and the pods in it."""

import functools
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
K8S = ROOT / "k8s"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CRDS = Path(os.environ.get("HEADRACE_SHARED", ROOT.parent / "shared")) / "crds"

COMPONENTS = tuple(sorted(folder.name for folder in (K8S / "components").iterdir() if folder.is_dir()))
# what people apply, each component by itself on the base (keda needs the brokers of kafka), and all of them together
RENDERED = {
    "base": ("base", ()),
    "dev": ("overlays/dev", ()),
    "prod": ("overlays/prod", ()),
    "prod with a GPU": ("overlays/prod", ("gpu",)),
    "everything": ("base", COMPONENTS),
} | {f"base with {name}": ("base", ("kafka", name) if name == "keda" else (name,)) for name in COMPONENTS}

Document = dict[str, Any]


@functools.cache
def render(name: str) -> tuple[Document, ...]:
    """The documents of a variant in `RENDERED`."""
    start, components = RENDERED[name]
    if not components:
        return kustomize(K8S / start)
    with tempfile.TemporaryDirectory(prefix="headrace-k8s-") as made:
        folder = Path(made).resolve()
        kustomization = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [os.path.relpath(K8S / start, folder)],
            "components": [os.path.relpath(K8S / "components" / name, folder) for name in components],
        }
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return kustomize(folder)


def kustomize(folder: Path) -> tuple[Document, ...]:
    """What a folder with a kustomization renders to; a deprecation is an error too."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("kubectl")), "kustomize", str(folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr
    return tuple(document for document in yaml.load_all(done.stdout, yaml.CSafeLoader) if document)


def of_kind(documents: tuple[Document, ...], kind: str) -> list[Document]:
    return [document for document in documents if document["kind"] == kind]


def name_of(document: Document) -> str:
    return f"{document['kind']} {document['metadata']['name']}"


def ray_service(documents: tuple[Document, ...]) -> Document:
    [service] = of_kind(documents, "RayService")
    return service


def groups(documents: tuple[Document, ...]) -> dict[str, Document]:
    """The pod groups of the Ray cluster by name; the head is called `head`."""
    cluster = ray_service(documents)["spec"]["rayClusterConfig"]
    return {"head": cluster["headGroupSpec"]} | {g["groupName"]: g for g in cluster["workerGroupSpecs"]}


def pods(documents: tuple[Document, ...]) -> dict[str, Document]:
    """The pod templates that are ours to write, by name."""
    found = {f"ray {name}": group["template"] for name, group in groups(documents).items()}
    for document in documents:
        if document["kind"] in ("StatefulSet", "Deployment", "DaemonSet", "Job"):
            found[name_of(document)] = document["spec"]["template"]
    return found


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def config_map(documents: tuple[Document, ...], prefix: str) -> dict[str, str]:
    [found] = [d for d in of_kind(documents, "ConfigMap") if d["metadata"]["name"].startswith(f"{prefix}-")]
    return dict(found["data"])


def environment(documents: tuple[Document, ...], group: str) -> dict[str, str | None]:
    """Variables of a group's first container; None: not known here, as it comes from a Secret or a field."""
    container = groups(documents)[group]["template"]["spec"]["containers"][0]
    plain: dict[str, str | None] = {}
    maps = {d["metadata"]["name"]: d["data"] for d in of_kind(documents, "ConfigMap")}
    for source in container.get("envFrom", []):
        plain |= maps[source["configMapRef"]["name"]]
    return plain | {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def values_at(node: Any, key: str) -> Iterator[Any]:
    """Every value that stands under this key, at any depth."""
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from values_at(value, key)
    elif isinstance(node, list):
        for entry in node:
            yield from values_at(entry, key)


def pinned(package: str) -> str:
    """The version in constraints.txt."""
    found = re.search(
        rf"^{package}(?:\[[^]]*\])?==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE
    )
    assert found is not None, package
    return found[1]
