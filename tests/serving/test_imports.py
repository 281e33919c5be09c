"""Serving stays light: what it must not pull in, and that its settings cost nothing."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("serving.app", {"deepspeed", "ray.train", "transformers"}),
        ("serving.engine", {"deepspeed", "ray", "transformers", "fastapi"}),
        ("serving.config", {"torch", "ray", "numpy"}),
    ],
)
def test_an_import_stays_light(module, forbidden):
    code = f"import sys, {module}; print(sorted({forbidden!r} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
