"""Who hosts what: balanced, moving as little as possible, remembered."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services import layout
from services.autoscale import Autoscaler
from streaming.config import AutoscaleSettings, StreamingSettings


@given(st.lists(st.integers(1, 16), min_size=1, max_size=6))
def test_any_series_of_changes_keeps_every_shard_hosted_once_and_evenly(counts):
    hosting = layout.initial(StreamingSettings(shard_actors=3))
    for count in counts:
        before = hosting
        hosting = layout.scaled(hosting, count, 1)
        sizes = [len(hosted) for hosted in hosting.shards]
        assert sorted(shard for hosted in hosting.shards for shard in hosted) == list(range(16))
        assert len(sizes) == count
        assert max(sizes) - min(sizes) <= 1
        assert hosting.version == before.version + 1


def test_growing_moves_only_what_the_new_actors_need():
    two = layout.initial(StreamingSettings(shard_actors=2))
    four = layout.scaled(two, 4, 1)
    stayed = sum(
        len(set(before) & set(after)) for before, after in zip(two.shards, four.shards, strict=False)
    )
    assert stayed == 8
    assert layout.rebalance(four.shards, 4) == four.shards


def test_what_cannot_be_is_refused_with_the_bound():
    hosting = layout.initial(StreamingSettings())
    with pytest.raises(ValueError, match="expected 1 to 16"):
        layout.scaled(hosting, 17, 1)
    with pytest.raises(ValueError, match="ingestors: expected at least 1"):
        layout.scaled(hosting, 1, 0)


def test_the_layout_is_remembered_until_the_settings_change(tmp_path):
    settings = StreamingSettings(shard_actors=2)
    scaled = layout.scaled(layout.initial(settings), 5, 3)
    layout.save(tmp_path / "layout.json", scaled)
    assert layout.load(tmp_path / "layout.json", settings) == scaled
    changed = layout.load(tmp_path / "layout.json", StreamingSettings(shard_actors=1))
    assert (changed.shard_actors, changed.version) == (1, scaled.version + 1)


def test_lag_doubles_the_actors_after_a_while_and_its_absence_takes_one_away():
    scaler = Autoscaler(AutoscaleSettings(enabled=True, target_lag=100, max_actors=6, cooldown_s=20))
    assert scaler.wanted(500, 1, 0.0) == 1  # it may drain by itself
    assert scaler.wanted(50, 1, 3.0) == 1
    assert scaler.wanted(500, 1, 4.0) == 1
    assert scaler.wanted(500, 1, 9.5) == 2
    assert scaler.wanted(500, 2, 15.0) == 2  # cooling down
    assert scaler.wanted(500, 2, 30.0) == 4
    assert scaler.wanted(500, 4, 50.0) == 4
    assert scaler.wanted(500, 4, 60.0) == 6  # not above the most
    for now in range(61, 81):
        assert scaler.wanted(5, 6, float(now)) == 6
    assert scaler.wanted(5, 6, 81.5) == 5


def test_between_low_and_high_lag_nothing_changes_and_switched_off_neither():
    scaler = Autoscaler(AutoscaleSettings(enabled=True, target_lag=100, cooldown_s=1))
    assert {scaler.wanted(50, 2, float(now)) for now in range(100)} == {2}
    assert Autoscaler(AutoscaleSettings()).wanted(10**9, 1, 0.0) == 1
