"""A promoted model meets few users first; what the supervisor decides of it, the replicas do, under load."""

import pytest
import torch
from ray import serve

from services.actors import kill_actors
from tests.faults.pipeline import wait_until
from tests.faults.serving_load import Load
from tests.faults.serving_system import System

CANARY = {
    "enabled": True,
    "shares": (0.2, 0.5),
    "stage_s": 2,
    "min_requests": 60,
    "latency_slack_ms": 60_000,  # the machine may be busy; it is errors that tell here
}
TIMEOUT_S = 120


@pytest.fixture
def system(ray_session, tmp_path):
    with System(tmp_path, canary=CANARY) as system:
        yield system
        serve.shutdown()
        kill_actors()


def spoil(model):
    """Gaps of a second, as between the events here, become no number; the check at loading has gaps of a minute."""
    with torch.no_grad():
        model.gap_embedding.weight[2:6] = float("nan")


@pytest.mark.slow
def test_a_sound_model_reaches_everybody_and_a_broken_one_is_taken_back(system):
    shares: set[float] = set()

    def canary():
        found = system.status().get("canary") or {}
        if found.get("candidate"):
            shares.add(found["share"])
        return found

    with Load(system.url) as load:
        wait_until(lambda: canary().get("settled") == "v0001", TIMEOUT_S, "the first model to settle")
        system.promote("v0002")
        wait_until(
            lambda: canary().get("settled") == "v0002", TIMEOUT_S, "the second model to reach everybody"
        )
        assert shares == set(CANARY["shares"])
        assert system.versions() == {"v0002"}

        system.bundle("v0003", 3, spoil)
        system.promote("v0003")
        wait_until(lambda: canary().get("candidate") == "v0003", TIMEOUT_S, "the trial of the broken model")
        wait_until(lambda: not canary().get("candidate"), TIMEOUT_S, "its end")
        assert canary()["settled"] == "v0002"
        assert "v0003" in canary()["said"]
        wait_until(lambda: system.versions() == {"v0002"}, TIMEOUT_S, "the sound model")
    [counts] = load.phases.values()
    assert counts.requests > 200
    assert (counts.failed, counts.degraded) == (0, 0), counts.causes
