"""One trace from a request over Kafka to visible state, told to a collector by the processes that it passes."""

import uuid

import pytest

from services.actors import Actors, kill_actors
from services.settings import make_settings
from serving.app import build_app
from serving.engine import Recommender
from serving.ports import KafkaSink
from streaming.kafka import ensure_topics
from tests.serving.live import served
from tests.streaming.collector import collecting

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.mark.parametrize("client", ["kafka-python", "confluent"])
def test_an_event_is_one_trace_from_its_request_to_visible_state(broker, ray_session, tmp_path, client):
    name = f"traced-{uuid.uuid4().hex[:6]}"
    with collecting() as collector:
        settings = make_settings(
            {
                "data_dir": tmp_path,
                "kafka": {
                    "bootstrap_servers": broker,
                    "partitions": 2,
                    "items_topic": f"{name}.items",
                    "client": client,
                },
                "streaming": {
                    "sources": [{"topic": name}],
                    "logical_shards": 2,
                    "shard_actors": 2,
                    "map_size_gib": 0.1,
                    "traces": {"endpoint": collector.endpoint, "share": 0},
                },
            }
        )
        ensure_topics(settings.kafka, [name])
        Actors(settings).start_stream()
        sink = KafkaSink(settings.kafka, settings.streaming.sources[0], timeout_s=15)
        recommender = Recommender(settings.data_dir, settings.streaming, settings.serving)
        try:
            with served(build_app(recommender, sink, None)) as http:
                for number in range(20):
                    event = {"user_id": f"u{number}", "item_id": "a", "type": "view"}
                    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01"} if number == 7 else {}
                    answer = http.post("/v1/events", json={"events": [event]}, headers=headers)
                    assert answer.status_code == 202, answer.text
            told = collector.wait_for(lambda told: len(told) >= 4, 60)
        finally:
            kill_actors()
            recommender.stop()
            sink.close()
    spans = {span.name: span for span in told}
    assert len(told) == len(spans) == 4
    assert {span.trace for span in told} == {TRACE}
    request, ingest, apply = spans["POST /v1/events"], spans["ingest"], spans["apply"]
    assert request.parent == CALLER
    assert ingest.parent == request.span
    assert apply.parent == ingest.span
    assert spans["batch"].links == (ingest.span,)
    assert (request.role, ingest.role, apply.role) == ("api", "ingestor", "shard")
    assert ingest.start_ns <= apply.start_ns <= apply.end_ns
