import subprocess
import sys

import pytest
from pydantic import ValidationError

from training.config import ModelConfig, TrainingSettings


@pytest.mark.parametrize(
    ("modules", "barred"),
    [
        (
            "training.config, training.learner, training.registry, training.status",
            ["torch", "ray", "deepspeed"],
        ),
        ("training.bundle, training.encoder, training.gate", ["deepspeed", "ray"]),
    ],
)
def test_imports_stay_cheap(modules: str, barred: list[str]) -> None:
    code = f"import sys, {modules}; print([name for name in {barred!r} if name in sys.modules])"
    ran = subprocess.run([sys.executable, "-c", code], check=True, timeout=60, capture_output=True, text=True)
    assert ran.stdout.strip() == "[]"


def test_wrong_settings_are_refused_with_the_bound() -> None:
    with pytest.raises(ValidationError, match="heads must divide dim"):
        ModelConfig(dim=64, heads=3)
    with pytest.raises(ValidationError, match="overlap must be below"):
        TrainingSettings(overlap=50)
    with pytest.raises(ValidationError, match="less than or equal to 19"):
        TrainingSettings(nice=20)
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainingSettings(learning_rate=1.0)  # type: ignore[call-arg]
