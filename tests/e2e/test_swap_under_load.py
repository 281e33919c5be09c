"""Real Ray Serve behind its HAProxy: models are swapped while clients ask, and no request fails."""

import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from ray import serve

from serving.app import api_application
from serving.config import ServingSettings
from streaming.broker import free_port
from streaming.config import KafkaSettings
from tests.serving.conftest import ITEMS
from tests.serving.world import STREAMING, World, event

CLIENTS, SWAPS, REQUESTS_BETWEEN = 4, 6, 40


class Load(threading.Thread):
    """Asks for one user's ranking until told to stop; remembers every answer and every failure."""

    def __init__(self, url: str, stop: threading.Event) -> None:
        super().__init__()
        self._url, self._stop_asking = url, stop
        self.answers: list[tuple[str, tuple[str, ...]]] = []
        self.failures: list[str] = []

    def run(self) -> None:
        with httpx.Client(base_url=self._url, timeout=10) as client:
            while not self._stop_asking.is_set():
                try:
                    answer = client.get("/v1/recommendations/anna", params={"k": 20})
                    answer.raise_for_status()
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                body = answer.json()
                ranked = tuple(item["item_id"] for item in body["items"])
                self.answers.append((body["model"]["version"], ranked))


def wait_until(check: Callable[[], bool], what: str) -> None:
    tick = threading.Event()
    for _ in range(400):
        if check():
            return
        tick.wait(0.05)
    raise AssertionError(f"{what} did not happen in time")


def serving(client: httpx.Client) -> str:
    return client.get("/v1/models").json()["serving"]["version"]


def answered(load: list[Load]) -> int:
    return sum(len(thread.answers) for thread in load)


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.publish(*ITEMS)
    world.happen(event("anna", "i1", 0), event("anna", "i2", 1, "rating"), event("anna", "i3", 4, "click"))
    world.train("v1", seed=1, known=("i1", "i2", "i3"))
    world.train("v2", seed=2, known=("i1", "i2", "i3"), promote=False)
    return world


def test_models_swap_under_load_without_a_failed_request(ray_session, world):
    settings = ServingSettings(port=free_port(), refresh_s=0.05, admin_open=True)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    application = api_application(world.data_dir, KafkaSettings(), STREAMING, settings)
    serve.run(application, name="swap", route_prefix="/")
    url = f"http://{settings.host}:{settings.port}"
    stop = threading.Event()
    load = [Load(url, stop) for _ in range(CLIENTS)]
    try:
        with httpx.Client(base_url=url, timeout=10) as client:
            assert client.get("/readyz").status_code == 200
            for thread in load:
                thread.start()
            for swap in range(SWAPS):
                version = ("v2", "v1")[swap % 2]
                assert client.post(f"/v1/models/{version}/promote").status_code == 200
                wait_until(lambda wanted=version: serving(client) == wanted, f"the swap to {version}")
                enough = answered(load) + REQUESTS_BETWEEN
                wait_until(lambda enough=enough: answered(load) >= enough, "an answer")
            stats = client.get("/v1/stats").json()
    finally:
        stop.set()
        for thread in load:
            if thread.ident is not None:
                thread.join(20)
        serve.shutdown()
    answers = [answer for thread in load for answer in thread.answers]
    assert [failure for thread in load for failure in thread.failures] == []
    assert len(answers) >= SWAPS * REQUESTS_BETWEEN
    rankings = {version: {ranked for v, ranked in answers if v == version} for version, _ in answers}
    assert {version: len(orders) for version, orders in rankings.items()} == {"v1": 1, "v2": 1}
    assert rankings["v1"] != rankings["v2"]
    assert stats["pipeline"] is None  # no pipeline application runs here, and the API says so
    assert stats["request_ms"]["errors"] == 0
