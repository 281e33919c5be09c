from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.engine import Recommender
from tests.serving.world import World, event

ITEMS = tuple({"item_id": f"i{n}", "title": f"Item {n}", "categories": ["abc"[n % 3]]} for n in range(20))


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Twenty items, and user `anna` with three events; no model yet."""
    world = World(tmp_path)
    world.publish(*ITEMS)
    world.happen(event("anna", "i1", 0), event("anna", "i2", 1, "rating"), event("anna", "i3", 4, "click"))
    return world


@pytest.fixture
def trained(world: World) -> World:
    """The same with a promoted model `v1`."""
    world.train("v1", known=("i1", "i2", "i3"))
    return world


@pytest.fixture
def recommender(trained: World) -> Iterator[Recommender]:
    """A recommender over `trained`, its polling thread not started."""
    recommender = trained.recommender()
    yield recommender
    recommender.stop()
