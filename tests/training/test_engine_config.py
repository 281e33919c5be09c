import pytest

from tests.training.synthetic import settings
from training.config import DeepSpeedConfig
from training.engine import engine_config
from training.errors import LearnerError


def test_more_of_deepspeeds_configuration_is_laid_over_ours() -> None:
    more = {"comms_logger": {"enabled": True}, "zero_optimization": {"contiguous_gradients": False}}
    made = engine_config(settings(deepspeed=DeepSpeedConfig(stage=2, more=more)), workers=2)
    assert made["comms_logger"] == {"enabled": True}
    assert made["zero_optimization"]["stage"] == 2
    assert made["zero_optimization"]["contiguous_gradients"] is False
    assert made["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ({"gradient_clipping": 3.0}, r"more\.gradient_clipping is set by Headrace already \(1\.0\)"),
        ({"zero_optimization": {"stage": 1}}, r"more\.zero_optimization\.stage is set by Headrace already"),
        ({"optimizer": "Adam"}, r"more\.optimizer is set by Headrace already"),
    ],
)
def test_what_headrace_sets_cannot_be_set_again(more: dict[str, object], named: str) -> None:
    with pytest.raises(LearnerError, match=named):
        engine_config(settings(deepspeed=DeepSpeedConfig(more=more)), workers=1)
