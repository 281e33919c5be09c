"""The Dockerfile: clean for hadolint, and built of nothing that is not pinned or not sent to the builder."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.k8s.rendering import ROOT

DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing():
    tool = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [str(tool), "--failure-threshold", "style", str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_what_is_copied_is_sent_to_the_builder_and_exists():
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            assert source in sent, source
            assert (ROOT / source).exists(), source


def test_the_last_stage_has_no_compiler_and_no_root():
    last = DOCKERFILE.rsplit("\nFROM ", 1)[1]
    assert "g++" not in last
    assert last.index("USER 10001:10001") < last.index("ENTRYPOINT")
    assert "/readyz" in last[last.index("HEALTHCHECK") :]
    assert "COPY --from=build /opt/headrace /opt/headrace" in last


def test_base_images_and_packages_are_pinned():
    for image in re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE):
        assert image == "python:${PYTHON}-slim-bookworm"
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+$", DOCKERFILE, re.MULTILINE)
    for install in re.findall(r"pip install (.+)", DOCKERFILE):
        assert "--constraint constraints.txt" in install or "--no-deps ." in install, install


def test_dependencies_are_a_layer_below_the_code():
    assert DOCKERFILE.index('".[${EXTRAS}]"') < DOCKERFILE.index("COPY streaming streaming")
    assert {f"COPY {name} {name}" for name in ("streaming", "training", "serving", "services")} <= set(
        DOCKERFILE.splitlines()
    )


def test_what_is_installed_from_the_copied_files_is_whole(tmp_path):
    """The build's own steps for the code: what COPY brings, made into a wheel without asking any index."""
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for line in re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE):
        for source in line.split():
            found = ROOT / source
            if found.is_dir():
                shutil.copytree(found, tmp_path / source, ignore=skip)
            else:
                shutil.copy(found, tmp_path / source)
    offline = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            *offline,
            "--wheel-dir",
            str(tmp_path / "dist"),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    [wheel] = (tmp_path / "dist").glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    for package in ("streaming", "training", "serving", "services"):
        files = {
            path.relative_to(tmp_path).as_posix()
            for path in (tmp_path / package).rglob("*")
            if path.is_file()
        }
        assert files - held == set(), package
