"""A shard that stands still under full input fills no process: memory stays within its bound, and the lag drains."""

import pytest
from ray import serve

from tests.faults.backpressure import MIB, press
from tests.faults.flood import RECORD_BYTES

GROWTH_MIB = 8  # what waits on the topic meanwhile is more than ten times that, per ingestor


@pytest.fixture
def own_serve(ray_session):
    """What is started in Serve here is gone afterwards: others start it with options of theirs."""
    yield
    serve.shutdown()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_memory_stays_bounded_while_a_shard_is_paused(own_serve, tmp_path):
    """The bound of each process is derived from the settings in `tests.faults.backpressure`, which states it."""
    pressure = press(tmp_path, print, pause_s=30)
    assert pressure.lag * RECORD_BYTES > 150 * MIB
    assert len(pressure.bound) == 4  # two ingestors, two shards
    for process, bound in pressure.bound.items():
        assert pressure.peak[process] <= bound, process
        assert pressure.late[process] - pressure.early[process] <= GROWTH_MIB * MIB, process
    assert pressure.object_store_peak <= pressure.object_store_bound
    assert pressure.taken <= pressure.taken_bound < pressure.lag / 3
    assert (pressure.lost, pressure.doubled) == (0, 0)
