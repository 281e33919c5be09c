"""The live app held against its own OpenAPI document: whatever is sent, the answer is one that is documented.

Requests are made from the document, right and wrong ones, the same on each run. What only the settings and the
catalogue know (event types, items, users) is told to the generator, so that enough of them get past the first check.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.schemas import APIOperation
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from serving.app import build_app
from serving.ports import KafkaSink
from streaming.config import KafkaSettings, Source
from streaming.kafka import ensure_topics
from tests.serving.conftest import ITEMS
from tests.serving.live import served
from tests.serving.test_http import Running
from tests.serving.world import STREAMING, World, event

KEY = "a-key-of-sixteen-or-more"
EXAMPLES = 15  # requests per operation, right and wrong ones each

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]

# name of a field or parameter → what makes sense there, as a JSON schema
SENSE: dict[str, Any] = {
    "type": {"enum": list(STREAMING.event_types)},
    "timestamp": {"type": "null"},
    "value": {"type": "number", "minimum": -1000, "maximum": 1000},
    "k": {"type": "integer", "minimum": 1, "maximum": 20},
    "item_id": {"anyOf": [{"enum": ["i1", "i2"]}, {"type": "string", "minLength": 1}]},
    "user_id": {"anyOf": [{"enum": ["anna"]}, {"type": "string", "minLength": 1}]},
    "version": {"anyOf": [{"enum": ["v1"]}, {"type": "string"}]},
    "items": {"type": "array", "minItems": 1, "items": {"enum": ["i1", "i2", "i3", "nix"]}},
    "filter": {"anyOf": [{"enum": ['category = "a"', 'not title in ("Item 1")']}, {"type": "string"}]},
    "shard_actors": {"type": "integer", "minimum": 1, "maximum": 9},
}
REQUESTS = ("InlineEvent", "NewEvent", "RecommendationRequest", "RankRequest", "ScaleRequest")


@pytest.fixture(scope="module")
def live(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The whole API with a model, a user, a broker, and nothing for callers without a key."""
    world = World(tmp_path_factory.mktemp("schemathesis"))
    world.publish(*ITEMS)
    world.happen(event("anna", "i1", 0), event("anna", "i2", 1, "rating"))
    world.train("v1", known=("i1", "i2"))
    kafka, source = KafkaSettings(bootstrap_servers=broker), Source(topic="schemathesis-events")
    ensure_topics(kafka, [source.topic])
    sink = KafkaSink(kafka, source, timeout_s=15)
    recommender = world.recommender(admin_api_key=KEY, simulations=True, security={"anonymous_scopes": ()})
    with served(build_app(recommender, sink, Running())) as client:
        yield client
    recommender.stop()
    sink.close()


def sensible(document: dict[str, Any]) -> dict[str, Any]:
    """The document with `SENSE` in its requests; answers are left as they are documented."""
    for name in REQUESTS:
        fields = document["components"]["schemas"][name]["properties"]
        fields |= {field: SENSE[field] for field in fields if field in SENSE}
    for path in document["paths"].values():
        for operation in path.values():
            for parameter in operation.get("parameters", ()):
                parameter["schema"] = SENSE.get(parameter["name"], parameter["schema"])
    return document


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_every_answer_is_a_documented_one(
    live: httpx.Client, subtests: pytest.Subtests, mode: GenerationMode
) -> None:
    schema = schemathesis.openapi.from_dict(sensible(live.get("/openapi.json").json()))
    operations = [found.ok() for found in schema.get_all_operations()]
    assert len(operations) > 10
    seen: set[int] = set()
    with requests.Session() as session:
        session.headers["X-API-Key"] = KEY
        for operation in operations:
            with subtests.test(operation.label):
                seen |= hold_to_document(operation, mode, str(live.base_url), session)
    assert seen >= ({200, 202, 404} if mode is GenerationMode.POSITIVE else {422})


def hold_to_document(
    operation: APIOperation, mode: GenerationMode, base_url: str, session: requests.Session
) -> set[int]:
    """Send what the document allows, or what it does not, and check each answer; returns the statuses seen."""
    seen = set()

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],  # shrinking would multiply the requests
    )
    @given(operation.as_strategy(generation_mode=mode))
    def hold(case: schemathesis.Case) -> None:
        answer = case.call(base_url=base_url, session=session)
        seen.add(answer.status_code)
        case.validate_response(answer, checks=CHECKS)

    with contextlib.suppress(Unsatisfiable):  # what has no parameters cannot be asked in a wrong way
        hold()
    return seen


def test_the_document_is_about_every_route(live: httpx.Client) -> None:
    """Else the test above would pass over what it does not know."""
    paths = live.get("/openapi.json").json()["paths"]
    operations = {
        f"{method.upper()} {path}": operation
        for path, known in paths.items()
        for method, operation in known.items()
    }
    public = {name for name, operation in operations.items() if "x-required-scope" not in operation}
    assert public == {"GET /healthz", "GET /readyz", "GET /metrics"}
    for name in ("GET /v1/recommendations/{user_id}", "POST /v1/rank", "POST /v1/events", "GET /v1/stats"):
        assert name in operations
