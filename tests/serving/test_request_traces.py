"""Traces of requests, told to a collector."""

import httpx
import pytest

from serving.app import build_app
from serving.config import ServingSettings
from serving.engine import Recommender
from streaming.config import TraceSettings
from tests.serving.live import served
from tests.serving.world import STREAMING
from tests.streaming.collector import collecting

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, NOT_SAMPLED = ({"traceparent": f"00-{TRACE}-{CALLER}-{flags}"} for flags in ("01", "00"))
STAGES = {"state", "encode", "retrieve", "policy"}


@pytest.fixture
def collector():
    with collecting() as running:
        yield running


@pytest.fixture
def traced(trained, collector):
    """The application over `trained`, which begins no traces of its own."""
    streaming = STREAMING.model_copy(update={"traces": TraceSettings(endpoint=collector.endpoint, share=0.0)})
    recommender = Recommender(trained.data_dir, streaming, ServingSettings())
    with served(build_app(recommender, None, None)) as client:
        yield client
    recommender.stop()


def ask(client: httpx.Client, headers: dict[str, str], **query: object) -> httpx.Response:
    return client.get("/v1/recommendations/anna", params=query, headers=headers)


@pytest.mark.parametrize("query", [{"k": 3}, {"k": 3, "diversity": 0.5}])
def test_a_ranking_is_a_span_of_its_callers_trace_and_its_stages_are_within_it(collector, traced, query):
    answer = ask(traced, SAMPLED, **query)
    assert answer.status_code == 200
    spans = {span.name: span for span in collector.wait_for(lambda told: len(told) >= 5)}
    request = spans.pop("GET /v1/recommendations/{user_id}")
    assert (request.trace, request.parent, request.role, request.failed) == (TRACE, CALLER, "api", False)
    assert request.attributes == {
        "http.request.method": "GET",
        "http.route": "/v1/recommendations/{user_id}",
        "http.response.status_code": 200,
        "headrace.request_id": answer.headers["x-request-id"],
    }
    assert spans.keys() == STAGES
    for stage in spans.values():
        assert (stage.trace, stage.parent) == (TRACE, request.span)
        # clocks that count durations and times differ by some microseconds
        assert request.start_ns - 10**6 <= stage.start_ns <= stage.end_ns <= request.end_ns + 10**6


def test_of_what_came_without_a_trace_and_is_not_sampled_nothing_is_told(collector, traced):
    ask(traced, {})
    ask(traced, NOT_SAMPLED)
    ask(traced, {"traceparent": "nonsense"})
    traced.get("/no/such/route/for/anna", headers=SAMPLED)
    [only] = collector.wait_for(lambda told: told)
    assert (only.name, only.attributes["http.response.status_code"]) == ("GET", 404)
    assert "anna" not in str(only.attributes)


def test_a_request_that_breaks_is_a_failed_span(collector, traced):
    assert traced.get("/v1/stats", headers=SAMPLED).status_code >= 500  # there is no pipeline to ask
    [span] = collector.wait_for(lambda told: told)
    assert (span.name, span.failed) == ("GET /v1/stats", True)


def test_every_request_of_a_batch_has_the_stages_of_the_batch(collector, traced):
    body = {"requests": [{"user_id": "anna"}, {"user_id": "nobody"}]}
    assert traced.post("/v1/recommendations", json=body, headers=SAMPLED).status_code == 200
    spans = collector.wait_for(lambda told: len(told) >= 5)
    assert len(spans) == 5
    assert {span.name for span in spans} == STAGES | {"POST /v1/recommendations"}
