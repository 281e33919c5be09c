"""What the window files say was popular, against sums done by hand."""

import pytest

from serving.config import PopularitySettings
from serving.popularity import WindowPopularity
from streaming.hashing import hash_one
from tests.serving.world import STREAMING, World, event


def counted(world: World, **settings) -> WindowPopularity:
    settings = PopularitySettings(half_life_s=100, **settings)
    return WindowPopularity(world.data_dir / "windows", STREAMING.logical_shards, settings)


def shares(popularity: WindowPopularity) -> dict[int, float]:
    items, values = popularity.shares()
    return dict(zip(items.tolist(), values.tolist(), strict=True))


@pytest.fixture
def world(tmp_path) -> World:
    """Windows of 100 s: `a` at 0 s; `b` at 200 s by the same user, whose context `a` must not count again."""
    world = World(tmp_path)
    world.happen(event("u", "a", 0), event("u", "b", 200 / 60), event("v", "c", 10))
    return world


def test_an_event_counts_once_and_halves_per_half_life(world):
    popularity = counted(world)
    assert popularity.refresh()
    assert shares(popularity) == pytest.approx({hash_one("b"): 0.8, hash_one("a"): 0.2})
    assert not popularity.refresh()


def test_only_the_newest_windows_count(world):
    popularity = counted(world, windows=1)
    popularity.refresh()
    assert shares(popularity) == pytest.approx({hash_one("b"): 1.0})


def test_a_long_past_is_read_in_portions_newest_first(world):
    world.happen(*(event("w", f"late{n}", 10 + 2 * n) for n in range(8)), offset=3)
    popularity = counted(world)
    assert popularity.refresh()
    first = set(shares(popularity))
    assert hash_one("late6") in first
    assert hash_one("a") not in first
    while popularity.refresh():
        pass
    assert set(shares(popularity)) > first | {hash_one("a")}


def test_before_the_first_window_nothing_is_popular(tmp_path):
    popularity = counted(World(tmp_path))
    assert not popularity.refresh()
    assert shares(popularity) == {}
