"""Kill what runs while events flow and cut it off from its broker: every row, count and window is the oracle's."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import psutil
import pytest
import ray
from ray import serve

from services.actors import Actors, kill_actors, named_actors
from streaming.batcher import Batcher, Cursor, Layout, ShardRoute
from streaming.events import EventDecoder
from streaming.intake import Decoded
from streaming.kafka import ensure_topics
from streaming.source import Records
from streaming.state import open_store
from tests.faults.chaos import Plan
from tests.faults.log import Logged, ends, read_log
from tests.faults.pipeline import Pipeline, settings_for, wait_until
from tests.faults.proxy import KINDS
from tests.faults.run import BASE_MS, prove
from tests.faults.stream import Feed, Stream
from tests.faults.truth import truth_of
from tests.faults.verdict import compare

ROOT = Path(__file__).parents[2]


@pytest.fixture
def own_serve(ray_session):
    """What is started in Serve here is gone afterwards: others start it with options of theirs."""
    yield
    serve.shutdown()


def test_a_shaken_pipeline_loses_and_doubles_nothing(own_serve, tmp_path):
    plan = Plan(
        events=20_000,
        users=1000,
        kills=7,
        connection_faults=4,
        rescales=False,
        longest_pause_s=0.8,
        longest_fault_s=2,
    )
    result = prove(plan, tmp_path, print)
    verdict = result.verdict
    assert verdict.ok, verdict.differences
    assert (verdict.lost, verdict.doubled, verdict.windows_wrong) == (0, 0, 0)
    assert result.survived.kills.total() == 7
    assert set(result.survived.kills) == {"ingestor", "shard", "supervisor"}
    assert set(result.faults) == set(KINDS)
    assert verdict.windows > 40
    assert result.records > plan.events
    for count in ("applied", "duplicates", "late", "dead_letters", "erasures"):
        assert result.totals[count] > 0, count


def test_actors_that_are_gone_for_good_are_made_anew(ray_session, broker, tmp_path):
    settings = settings_for(broker, tmp_path, "gone")
    ensure_topics(settings.kafka, [settings.streaming.events_topic])
    actors = Actors(settings)
    try:
        actors.start_stream()
        version = actors.hosting.version
        actors.settle()
        assert actors.hosting.version == version  # nothing is gone
        for kind, index in (("shards", 0), ("ingestors", 1)):
            ray.kill(getattr(actors, kind)[index])  # unlike a kill -9, Ray does not start it again
            wait_until(lambda: len(named_actors()) == 3, 30, "the end of an actor")
            actors.settle()
            assert len(named_actors()) == 4
        stream = Stream(500, 50, settings.streaming.event_types, 1, BASE_MS)
        feed = Feed(settings, stream, settings.kafka.partitions)
        feed.finish(30)
        log = read_log(settings.kafka, settings.streaming.events_topic)
        wait_until(lambda: Pipeline(settings).has_applied(ends(log)), 60, "the end of the stream")
    finally:
        kill_actors()


def test_the_verdict_sees_a_single_event_too_few_or_too_many(tmp_path):
    settings = settings_for("127.0.0.1:1", tmp_path, "verdict")
    log, dead = logged(settings, Stream(3000, 80, settings.streaming.event_types, 3, BASE_MS))
    apply(settings, log)
    exact = compare(settings, truth_of(log, settings.streaming), dead)
    assert exact.ok, exact.differences
    assert exact.windows > 40

    newest = log[0][-2]  # before the closing event
    again = Logged(log[0][-1].offset + 1, newest.timestamp_ms, newest.key, other_id(newest.value), ())
    lost = compare(settings, truth_of(log | {0: [*log[0], again]}, settings.streaming), dead)
    assert lost.lost > 0
    assert not lost.ok
    without = [record for record in log[0] if record is not newest]
    doubled = compare(settings, truth_of(log | {0: without}, settings.streaming), dead)
    assert doubled.doubled > 0
    assert not doubled.ok
    unsent = compare(settings, truth_of(log, settings.streaming), {0: dead[0][1:]})
    assert (unsent.lost, unsent.ok) == (1, False)


def logged(settings, stream):
    """The log that a stream makes, and that of its dead letters."""
    log = {partition: [] for partition in range(settings.kafka.partitions)}

    def append(record, partition):
        log[partition].append(Logged(len(log[partition]), record.timestamp_ms, record.key, record.value, ()))

    for record in stream:
        append(record, sum(record.key) % len(log))
    for partition in log:
        append(stream.closing(partition), partition)
    places = [(p, o) for p, o in sorted(truth_of(log, settings.streaming).dead)]
    headers = [
        (("headrace.partition", str(p).encode()), ("headrace.offset", str(o).encode())) for p, o in places
    ]
    return log, {0: [Logged(n, 0, None, None, pair) for n, pair in enumerate(headers)]}


def apply(settings, log):
    """Bring a log into the stores, without a broker."""
    streaming = settings.streaming
    shards = tuple(range(streaming.logical_shards))
    batcher = Batcher(streaming, list(log), Layout(0, (ShardRoute(None, shards),)), [0])
    decoder = EventDecoder(streaming)
    taken = []
    for partition, records in log.items():
        times = np.array([record.timestamp_ms for record in records], np.int64)
        events, rejected = decoder.decode([r.value for r in records], [r.key for r in records], times)
        offsets, keys = np.arange(len(records)), [r.key for r in records]
        batch = Records("events", partition, offsets, times, keys, [r.value for r in records])
        decoded = Decoded.of(batch, events, [reject.record for reject in rejected])
        taken.append((Cursor(partition, 0), decoded))
    [batch] = batcher.records(taken)
    for shard in shards:
        with open_store(
            settings.data_dir / "state", settings.data_dir / "windows", shard, streaming
        ) as store:
            store.apply(batch.part(shard, len(shards)))


def other_id(value):
    return json.dumps(json.loads(value) | {"event_id": "another"}).encode()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fifty_kills_during_300_000_events(tmp_path):
    report = tmp_path / "faults.json"
    command = [sys.executable, "-m", "tests.faults", "--no-backpressure", "--report", str(report)]
    done = subprocess.run(command, cwd=ROOT, timeout=880, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    figures = json.loads(report.read_text())
    assert figures["events"] >= 300_000
    assert figures["kills"] == 50
    assert figures["connection_faults"] == 24
    assert (figures["lost"], figures["doubled"], figures["windows_identical"]) == (0, 0, True)


@pytest.mark.slow
def test_control_c_leaves_nothing_running(tmp_path):
    running = subprocess.Popen(
        [sys.executable, "-m", "tests.faults", "--events", "50000", "--keep", str(tmp_path / "kept")],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    family = []
    try:
        for line in running.stdout:
            if "kills" in line:
                break
        family = psutil.Process(running.pid).children(recursive=True)
        assert len(family) > 10
        running.send_signal(signal.SIGINT)
        assert running.wait(90) == 130
        _, alive = psutil.wait_procs(family, timeout=20)
        assert alive == []
    finally:
        running.kill()
        for process in family:
            if process.is_running():
                process.kill()
