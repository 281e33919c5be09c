"""What the learner tells in metrics."""

from typing import get_args

from prometheus_client import REGISTRY

from training import telemetry
from training.gate import Cause


def test_causes_of_verdicts_are_those_of_the_gate():
    assert {cause for causes in telemetry.CAUSES.values() for cause in causes} == set(get_args(Cause))


def test_counters_are_there_before_anything_is_counted():
    telemetry.tell_zeros()
    for name, labels in (
        ("gate_verdicts", {"verdict": "rejected", "reason": "pushed_item"}),
        ("training_windows", {"outcome": "skipped"}),
        ("screened_users", {"verdict": "quarantined"}),
    ):
        assert REGISTRY.get_sample_value(f"headrace_{name}_total", labels) is not None


def test_steps_tell_duration_losses_and_speed_over_the_newest():
    def steps():
        return REGISTRY.get_sample_value("headrace_training_step_duration_seconds_count")

    before = steps()
    meter = telemetry.StepMeter()
    for _ in range(100):
        meter.step(1.0, 10, 2.0, 0.0)
    for _ in range(20):
        meter.step(0.5, 32, 1.5, 2.5)
    assert steps() == before + 120
    assert REGISTRY.get_sample_value("headrace_training_rows_per_second") == 64
    assert REGISTRY.get_sample_value("headrace_training_loss", {"part": "clean"}) == 1.5
    assert REGISTRY.get_sample_value("headrace_training_loss", {"part": "adversarial"}) == 2.5
