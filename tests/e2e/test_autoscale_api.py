"""Requests bring replicas of the API, and calm takes them away again, to none where that is allowed."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from ray import serve

from serving.app import api_application
from serving.config import ServingSettings
from streaming.broker import free_port
from streaming.config import KafkaSettings
from tests.e2e.test_swap_under_load import Load
from tests.faults.pipeline import wait_until
from tests.serving.world import STREAMING, World, event

CLIENTS = 12
TIMEOUT_S = 120  # Serve looks at the mean of half a minute


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.publish(*(f"i{n}" for n in range(6)))
    world.happen(event("anna", "i1", 0), event("anna", "i2", 1))
    world.train("v1", known=("i1", "i2"))
    return world


@contextmanager
def api(world: World, minimum: int) -> Iterator[str]:
    """The API with up to two replicas and short delays; gives its URL."""
    replicas = {
        "minimum": minimum,
        "maximum": 2,
        "target_ongoing_requests": 2,
        "upscale_delay_s": 1,
        "downscale_delay_s": 2,
    }
    settings = ServingSettings.model_validate({"port": free_port(), "replicas": replicas})
    serve.start(http_options={"host": settings.host, "port": settings.port})
    try:
        serve.run(api_application(world.data_dir, KafkaSettings(), STREAMING, settings), name="scaled")
        yield f"http://{settings.host}:{settings.port}"
    finally:
        serve.shutdown()


@contextmanager
def load(url: str, clients: int) -> Iterator[list[Load]]:
    """As many clients as that, each asking for one thing after the other."""
    stop = threading.Event()
    threads = [Load(url, stop) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        stop.set()
        for thread in threads:
            thread.join(60)


def replicas() -> dict[str, int]:
    states = serve.status().applications["scaled"].deployments["Api"].replica_states
    return {str(getattr(state, "value", state)): count for state, count in states.items() if count}


def outcome(threads: list[Load]) -> tuple[list[str], bool]:
    return [failure for one in threads for failure in one.failures], all(one.answers for one in threads)


@pytest.mark.slow
def test_a_ramp_brings_a_replica_and_its_end_takes_it_away_without_a_failed_request(ray_session, world):
    with api(world, minimum=1) as url, load(url, 1) as steady:
        assert replicas() == {"RUNNING": 1}
        with load(url, CLIENTS) as ramp:
            wait_until(lambda: replicas() == {"RUNNING": 2}, TIMEOUT_S, "a second replica")
        wait_until(lambda: replicas() == {"RUNNING": 1}, TIMEOUT_S, "the end of the second replica")
    assert outcome(steady) == ([], True)
    assert outcome(ramp) == ([], True)


@pytest.mark.slow
def test_no_replica_is_left_when_nobody_asks_and_the_next_request_brings_one(ray_session, world):
    with api(world, minimum=0) as url:
        wait_until(lambda: not replicas(), TIMEOUT_S, "the end of the last replica")
        answer = httpx.get(f"{url}/v1/recommendations/anna", timeout=TIMEOUT_S)
        assert answer.status_code == 200, answer.text
        assert answer.json()["model"]["version"] == "v1"
        assert replicas().get("RUNNING") == 1
