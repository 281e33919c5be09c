"""Imports point down: streaming ← training ← serving ← services."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ["streaming", "training", "serving", "services"]


@pytest.mark.parametrize("layer", LAYERS)
def test_no_package_imports_a_higher_one(layer):
    above = set(LAYERS[LAYERS.index(layer) + 1 :])
    for file in (ROOT / layer).rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not above & {name.split(".")[0] for name in names}, f"{file} imports upwards"


@pytest.mark.parametrize(
    ("modules", "forbidden"),
    [
        (
            "streaming.ingestor, streaming.shard, streaming.cataloguer, streaming.reader",
            ["torch", "transformers"],
        ),
        ("serving.app, serving.engine", ["deepspeed", "ray.train"]),
        ("training.config, training.learner", ["torch", "deepspeed"]),
    ],
)
def test_imports_stay_cheap(modules, forbidden):
    code = f"import sys, {modules}; print([m for m in {forbidden} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
