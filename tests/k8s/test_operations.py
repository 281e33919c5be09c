"""What docs/operations.md tells people to apply and to name is what is there."""

import re
import shutil

import kubernetes_validate
import yaml

from tests.k8s.rendering import K8S, PROJECT, ROOT, kustomize, name_of, of_kind, render
from tests.k8s.test_policy import container_problems, problems_of

TEXT = (ROOT / "docs" / "operations.md").read_text()


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
