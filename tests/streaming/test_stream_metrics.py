"""What the stream tells in metrics: exactly what happened, once, and in few series."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from prometheus_client import REGISTRY, CollectorRegistry

from streaming.batch import ActorBatch
from streaming.catalog import CatalogStore, Item
from streaming.config import StreamingSettings, WindowSettings
from streaming.meters import MOMENT, Counter, Gauge, Histogram, observe_many, present, since
from streaming.shard import Shard
from tests.streaming.oracle import Event, make_batch

SETTINGS = StreamingSettings(
    sequence_length=4,
    event_types=("view", "buy"),
    logical_shards=1,
    map_size_gib=0.05,
    windows=WindowSettings(length_s=1.0, lateness_s=0.0),
)


class Told:
    """By how much metrics have grown since this was made."""

    def __init__(self):
        self._before = self._values()

    @staticmethod
    def _values():
        families = REGISTRY.collect()
        return {(s.name, *sorted(s.labels.items())): s.value for f in families for s in f.samples}

    def __call__(self, name, **labels):
        key = (f"headrace_{name}", *sorted(labels.items()))
        return self._values().get(key, 0.0) - self._before.get(key, 0.0)


@pytest.fixture
def shard(tmp_path):
    running = Shard(tmp_path, SETTINGS)
    yield running
    running.close()


def apply(shard, events, **how):
    entered = shard.enter((0,), 0, [0])
    windows = [event.time_ms // 1000 * 1000 for event in events]
    batch = make_batch(events, windows, **how)
    shard.apply(ActorBatch(batch, (0,), np.array([0, len(events)]), entered.epoch))


def at(offset, time_ms, event_id=0):
    return Event(
        user=1, item=offset + 1, event_id=event_id or offset + 1, time_ms=time_ms, type=0, offset=offset
    )


def test_events_are_counted_by_what_became_of_them(shard):
    now_ms = int(time.time() * 1000)
    told = Told()
    apply(shard, [at(0, now_ms), at(1, now_ms, event_id=1), at(2, now_ms + 3_600_000)])
    assert told("events_total", outcome="applied") == 2
    assert told("events_total", outcome="duplicate") == 1
    assert told("apply_duration_seconds_count") == 1
    apply(shard, [], from_offset=3, upto_offset=4, dead_letters=np.array([3, 4]))
    assert told("events_total", outcome="dead_lettered") == 2
    assert told("apply_duration_seconds_count") == 1  # a tick is no work worth measuring


def test_freshness_is_of_what_was_applied_and_never_negative(shard):
    now_ms = int(time.time() * 1000)
    told = Told()
    events = [at(0, now_ms - 200_000), at(1, now_ms - 100_000), at(2, now_ms + 3_600_000)]
    apply(shard, events)
    assert told("freshness_seconds_count") == 2
    assert told("freshness_seconds_bucket", le="60.0") == 0
    assert told("freshness_seconds_bucket", le="300.0") == 2
    assert told("freshness_seconds_sum") == pytest.approx(300, abs=30)
    assert told("negative_skew_events_total") == 1
    apply(shard, events)  # sent again after a rewind
    assert told("freshness_seconds_count") == 2
    assert told("negative_skew_events_total") == 1


def test_a_process_tells_what_it_did_and_not_what_was_done_before_it(tmp_path):
    first = Shard(tmp_path, SETTINGS)
    apply(first, [at(0, 100), at(1, 200)])
    first.close()
    told = Told()
    second = Shard(tmp_path, SETTINGS)
    apply(second, [at(0, 100), at(1, 200), at(2, 300)])
    assert [stats.applied for stats in second.stats()] == [3]
    assert told("events_total", outcome="applied") == 1
    second.close()


def test_windows_state_and_watermark_are_told(shard):
    told = Told()
    apply(shard, [at(0, 500), at(1, 1_500), at(2, 2_500)])
    assert told("windows_closed_total") == 2
    assert told("window_rows_count") == 2
    assert told("window_rows_sum") == 2
    shard.stats()
    assert REGISTRY.get_sample_value("headrace_state_rows") == 1
    assert REGISTRY.get_sample_value("headrace_state_bytes") >= 4096
    delay = REGISTRY.get_sample_value("headrace_watermark_delay_seconds")
    assert delay == pytest.approx(time.time() - 2.5, abs=60)


def test_many_observations_at_once_are_the_same_as_one_by_one():
    registry = CollectorRegistry()
    bounds = (0.1, 1.0, 10.0)
    at_once, one_by_one = (Histogram(name, name, buckets=bounds, registry=registry) for name in ("a", "b"))
    amounts = np.array([0.0, 0.1, 0.1000001, 0.5, 1.0, 9.0, 10.0, 11.0, 1e12])
    observe_many(at_once, amounts)
    observe_many(at_once, amounts[:0])
    for amount in amounts:
        one_by_one.observe(amount)
    first, second = (
        [(s.name[1:], s.labels, s.value) for s in f.samples if not s.name.endswith("_created")]
        for f in registry.collect()
    )
    assert first == second


def test_without_files_series_go_and_ages_grow():
    registry = CollectorRegistry()
    info = Gauge("info", "", ("version",), registry=registry, multiprocess_mode="livemax")
    present(info, {("v1",): 1})
    present(info, {("v2",): 1, ("v3",): 0.5})
    assert registry.get_sample_value("info", {"version": "v1"}) is None
    assert registry.get_sample_value("info", {"version": "v3"}) == 0.5
    age = Gauge("age", "", registry=registry, multiprocess_mode=MOMENT)
    since(age, time.time() - 100)
    assert 100 <= registry.get_sample_value("age") < 200
    since(age, None)
    assert np.isnan(registry.get_sample_value("age"))


SCRIPT = """
import json, sys
import streaming.metrics
from streaming.meters import folder
streaming.metrics.EVENTS.labels("applied").inc(3)
print(json.dumps([str(folder()) if folder() else None,
                  streaming.metrics.EVENTS.labels("applied")._value.get()]))
"""


@pytest.mark.parametrize("named", ["there", "not/there/yet"])
def test_files_are_kept_where_the_environment_says(tmp_path, named):
    said = in_a_process(tmp_path / named)
    assert said == [str(tmp_path / named), 3.0]
    assert [path.name.split("_")[0] for path in (tmp_path / named).glob("counter*.db")] == ["counter"]


def test_a_folder_that_cannot_be_made_costs_nothing_but_the_metrics(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert in_a_process(tmp_path / "file" / "metrics") == [None, 3.0]


def in_a_process(folder):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return json.loads(done.stdout)


def test_labels_are_of_the_settings_and_the_code_alone():
    """Nothing of an event can become a label: the names of labels say what they hold, and none holds an id."""
    import streaming.metrics
    import training.telemetry

    allowed = {
        *("outcome", "topic", "partition", "cache"),  # fixed, or as many as the settings name
        *("part", "verdict", "reason"),
    }
    for module in (streaming.metrics, training.telemetry):
        for metric in vars(module).values():
            if isinstance(metric, Counter | Gauge | Histogram):
                assert set(metric._labelnames) <= allowed


def test_texts_that_have_a_vector_already_are_hits(tmp_path):
    told, store = Told(), CatalogStore(tmp_path, 0.1)
    item = Item(item_id="a", title="one")
    store.apply([("a", item), ("b", Item(item_id="b", title="two"))], 0, 1)
    store.put_vectors("v1", store.missing("v1", 10), np.ones((2, 3), np.float32))
    store.apply(
        [("a", item.model_copy(update={"available": False})), ("b", Item(item_id="b", title="2"))], 0, 3
    )
    store.apply([("a", None)], 0, 4)
    assert told("cache_requests_total", cache="text_vectors", outcome="hit") == 1
    assert told("cache_requests_total", cache="text_vectors", outcome="miss") == 3
    store.close()
