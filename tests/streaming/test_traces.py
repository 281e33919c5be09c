"""Traces of events, told to a collector."""

import json
import subprocess
import sys
import time

import numpy as np
import pytest

from streaming.config import StreamingSettings, TraceSettings
from streaming.event_traces import EventTraces
from streaming.events import EventDecoder
from streaming.source import Records
from streaming.traces import make_tracer, sampled
from tests.streaming.collector import collecting

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
SAMPLED, NOT_SAMPLED = (f"00-{TRACE}-00f067aa0ba902b7-{flags}" for flags in ("01", "00"))


@pytest.fixture
def collector():
    with collecting() as running:
        yield running


def test_where_traces_are_off_nothing_of_them_is_imported():
    code = (
        "import sys, streaming.ingestor, streaming.shard; from streaming.config import TraceSettings; "
        "from streaming.traces import make_tracer; assert make_tracer(TraceSettings(), 'shard') is None; "
        "print(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ([("other", b"x"), ("traceparent", SAMPLED.encode())], SAMPLED),
        ([("traceparent", NOT_SAMPLED.encode())], None),
        ([("traceparent", b"\xff nonsense")], None),
        ([], None),
    ],
)
def test_only_a_sampled_trace_is_followed(headers, found):
    assert sampled(headers) == found


def test_spans_say_whose_they_are_and_what_they_are_part_of(collector):
    tracer = make_tracer(TraceSettings(endpoint=collector.endpoint, share=1.0), "ingestor")
    outer = tracer.begin("outer", SAMPLED, start_ms=1000.5)
    tracer.begin("inner", outer.traceparent, links=[SAMPLED]).end({"n": 3})
    outer.end()
    own = tracer.begin("own")
    own.end()
    spans = {span.name: span for span in collector.wait_for(lambda told: len(told) == 3)}
    assert (spans["outer"].trace, spans["outer"].parent) == (TRACE, SAMPLED.split("-")[2])
    assert spans["outer"].start_ns == 1_000_500_000
    assert (spans["inner"].trace, spans["inner"].parent) == (TRACE, spans["outer"].span)
    assert spans["inner"].links == (SAMPLED.split("-")[2],)
    assert spans["own"].trace != TRACE
    assert own.traceparent[:-2] == spans["own"].traceparent[:-2]
    assert {span.role for span in spans.values()} == {"ingestor"}


def test_a_share_of_0_begins_no_trace_but_follows_those_that_come(collector):
    tracer = make_tracer(TraceSettings(endpoint=collector.endpoint, share=0.0), "api")
    begun = tracer.begin("begun")
    assert sampled([("traceparent", begun.traceparent.encode())]) is None
    begun.end()
    tracer.begin("followed", SAMPLED).end()
    assert [span.name for span in collector.wait_for(lambda told: len(told) == 1)] == ["followed"]


def test_few_traces_of_a_micro_batch_are_followed_and_a_rewind_forgets_them(collector):
    settings = StreamingSettings()
    value = {"user_id": "ann", "item_id": "a", "type": "view", "timestamp": int(time.time() * 1000)}
    values = [json.dumps(value | {"event_id": f"e{n}"}).encode() for n in range(200)]
    now = np.full(200, value["timestamp"])
    batch = Records(
        "events", 0, np.arange(200), now, [None] * 200, values, lambda _: [("traceparent", SAMPLED.encode())]
    )
    events, _ = EventDecoder(settings, settings.sources[0]).decode(values, batch.keys, now)
    traces = EventTraces(make_tracer(TraceSettings(endpoint=collector.endpoint), "ingestor"), 16)
    traces.look(batch, events)
    traces.clear()
    assert traces.send([], 200) == ([], None)
    traces.look(batch, events)
    traces.send([], 200)[1].end()
    told = collector.wait_for(lambda told: len(told) >= 33)
    assert sorted(span.name for span in told) == ["batch"] + ["ingest"] * 32
