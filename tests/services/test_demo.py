"""The demo's own decisions: how a dataset becomes settings, and how a run is summed up."""

import io

import numpy as np
import pyarrow as pa
import pytest
from rich.console import Console

from services.datasets import Dataset
from services.demo import DemoOptions, demo_settings, history_rows, window_length_ms
from services.summary import summary_table

HOUR_MS = 3_600_000


@pytest.fixture
def dataset():
    rows = 10_000
    interactions = pa.table(
        {
            "user_id": [f"u{row % 100}" for row in range(rows)],
            "item_id": [f"i{row % 333}" for row in range(rows)],
            "timestamp_ms": np.arange(rows) * HOUR_MS // 10,
            "event_type": ["rating" if row % 2 else "wishlist" for row in range(rows)],
            "value": pa.array([1.0] * rows, pa.float32()),
        }
    )
    items = pa.table({"item_id": ["i1"], "title": ["One"], "description": [""], "categories": [["a"]]})
    return Dataset("synthetic", interactions, items)


def test_windows_of_the_steady_part_hold_some_thousands_of_events(dataset):
    times = dataset.interactions["timestamp_ms"].to_numpy()
    split = history_rows(dataset)
    length = window_length_ms(times, split)
    first_window = np.floor_divide(times[split:], length)
    assert 700 < np.bincount(first_window - first_window[0]).max() < 800  # an eighth of the history


def test_settings_know_the_types_of_the_stream_and_wait_for_a_reachable_amount(dataset):
    settings = demo_settings(DemoOptions(), dataset, "127.0.0.1:1", external=False)
    assert "wishlist" in settings.streaming.event_types
    assert settings.streaming.events_topic == "events"
    length = settings.streaming.windows.length_s * 1000
    times = dataset.interactions["timestamp_ms"].to_numpy()[: history_rows(dataset)]
    closed = (times // length + 1) * length <= times[-1] - settings.streaming.windows.lateness_s * 1000
    assert 0.5 * closed.sum() < settings.training.initial_events <= closed.sum()


def test_topics_on_a_shared_broker_are_the_demos_own(dataset):
    settings = demo_settings(DemoOptions(), dataset, "kafka:9092", external=True)
    assert settings.streaming.events_topic.startswith("headrace-demo-")
    assert settings.kafka.items_topic.startswith("headrace-demo-")


def test_the_summary_names_every_figure():
    report = {
        "dataset": {"name": "ml-100k"},
        "events": {"produced": 100, "applied": 99, "duplicates": 1, "dead_lettered": 0},
        "windows": 7,
        "models": {"trained": 3, "promoted": 2, "rejected": 1},
        "prequential": {"requests": 50, "hit_rate@10": 0.21, "popularity_hit_rate@10": 0.08},
        "request_ms": {"p50": 2.0, "p99": 9.0, "count": 60, "errors": 0},
        "freshness_ms": {"p50": 12.0, "p99": 80.0},
        "seconds_to_first_recommendation": 120.0,
    }
    out = io.StringIO()
    Console(file=out, width=120).print(summary_table(report))
    for figure in ("99 applied", "2 promoted", "0.210", "0.080", "p99 9.0 ms", "p99 80.0 ms", "120.0 s"):
        assert figure in out.getvalue()
