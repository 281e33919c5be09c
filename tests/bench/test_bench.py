"""The benchmark's own arithmetic: the workload's known answers, the report's shape, profiles and slopes."""

import json
from collections import defaultdict

import numpy as np
import pytest

from tests.bench.peers import BenchError, Stream, check
from tests.bench.profiling import shares
from tests.bench.report import make_report
from tests.bench.soak import slope_per_min
from tests.bench.stream import overrides, systems
from tests.bench.visible import summary
from tests.bench.workload import make_workload


def entry(**speeds):
    return {name: {"events_per_s": speed, "cpu_s": 1.0} for name, speed in speeds.items()}


def test_the_workload_knows_the_right_answer():
    workload = make_workload(20_000, 500)
    newest, applied = defaultdict(list), 0
    for _, key, value in workload.records(4):
        event = json.loads(value)
        assert event["user_id"] == key.decode()
        if event["event_id"] not in newest[event["user_id"]]:
            applied += 1
            newest[event["user_id"]] = [*newest[event["user_id"]], event["event_id"]][-50:]
    assert workload.applied == applied
    assert workload.duplicates == 20_000 - applied > 0
    assert len(newest[f"u{workload.witness:06d}"]) == 50
    assert workload.newest(workload.witness) == newest[f"u{workload.witness:06d}"]


def test_partitions_are_as_large_as_the_workload_says():
    workload = make_workload(5_000, 100)
    partitions = [partition for partition, _, _ in workload.records(4)]
    assert np.bincount(partitions).tolist() == workload.partition_sizes(4)


def test_medians_are_compared_with_the_better_peer():
    rounds = [
        entry(headrace_kafka_python=200, headrace_confluent=400, quixstreams=80, bytewax=100),
        entry(headrace_kafka_python=220, headrace_confluent=380, quixstreams=90, bytewax=60),
        entry(headrace_kafka_python=180, headrace_confluent=420, quixstreams=85, bytewax=100),
    ]
    report = make_report(rounds, {"p50": 8.0, "p99": 30.0})
    assert report["events_per_s"]["headrace_kafka_python"] == 200
    assert report["better_peer"] == "bytewax"
    assert report["ratio_kafka_python"] == 2.0
    assert report["ratio_fast"] == 4.0
    assert report["ratios"]["headrace_confluent"]["quixstreams"] == 4.71
    assert report["visible_ms"] == {"p50": 8.0, "p99": 30.0}


def test_what_was_not_measured_is_null():
    report = make_report([entry(headrace_kafka_python=200)], None)
    assert set(report["events_per_s"]) >= {
        "headrace_kafka_python",
        "headrace_confluent",
        "quixstreams",
        "bytewax",
    }
    assert report["events_per_s"]["bytewax"] is None
    assert report["ratio_kafka_python"] is None
    assert report["ratio_fast"] is None
    assert report["visible_ms"] == {"p50": None, "p99": None}
    json.dumps(report)


def test_a_peer_that_loses_an_event_is_no_result():
    stream = Stream("broker", "topic", [6, 4], 9, 1, "u1", ["e1"])
    check("peer", stream, [{"records": 10, "applied": 9, "duplicates": 1, "witness": ["e1"]}])
    with pytest.raises(BenchError, match="expected"):
        check("peer", stream, [{"records": 10, "applied": 8, "duplicates": 1, "witness": ["e1"]}])
    with pytest.raises(BenchError, match="newest events of u1"):
        check("peer", stream, [{"records": 10, "applied": 9, "duplicates": 1, "witness": ["e2"]}])


def test_a_probe_that_is_never_seen_counts_as_the_slowest():
    samples = [(0.0, 9.0)] + [(10.0, 0.010)] * 97 + [(10.0, None)] * 3
    found = summary(samples, warm_up_s=5)
    assert (found["p50"], found["p99"], found["probes"], found["unseen"]) == (10.0, None, 100, 3)


def test_the_slope_leaves_out_the_first_fifth():
    times = list(range(0, 601, 10))
    grows_then_flat = [min(t, 120) for t in times]
    assert slope_per_min(times, grows_then_flat) == pytest.approx(0, abs=1e-9)
    assert slope_per_min(times, [t / 60 * 3 for t in times]) == pytest.approx(3)
    assert slope_per_min(times[:2], [1, 2]) is None


def test_time_belongs_to_our_innermost_function_and_the_library_it_calls():
    raw = (
        "run (streaming/ingestor.py:1);poll (streaming/source.py:9);poll (kafka/consumer/group.py:700) 30\n"
        "main_loop (ray/_private/worker.py:900);run (streaming/ingestor.py:1);decode (streaming/events.py:5) 60\n"
        "main_loop (ray/_private/worker.py:900) 10\n"
    )
    assert shares(raw) == [
        ("streaming/events.py decode", 0.6),
        ("streaming/source.py poll → kafka", 0.3),
        ("outside → ray", 0.1),
    ]


def test_options_are_read_or_refused():
    assert systems("headrace,bytewax") == ["headrace_kafka_python", "headrace_confluent", "bytewax"]
    assert overrides(["ingestors=2", "durability=machine"]) == {"ingestors": 2, "durability": "machine"}
    with pytest.raises(BenchError, match="flink"):
        systems("flink")
    with pytest.raises(BenchError, match="NAME=VALUE"):
        overrides(["ingestors"])
