"""The API over real HTTP: uvicorn on loopback, the real recommender, and the real broker for events."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from kafka import TopicPartition

from serving.app import build_app
from serving.engine import Recommender
from serving.errors import ConflictError, InvalidRequestError, UnavailableError
from serving.ports import KafkaSink, ServePipeline
from streaming.broker import free_port
from streaming.config import FieldPaths, KafkaSettings, Source
from streaming.kafka import ensure_topics, make_consumer
from tests.serving.world import World, event

KEY = "a-key-of-sixteen-or-more"


class Running:
    """A pipeline whose supervisor answers."""

    async def status(self) -> dict[str, Any]:
        return {"lag": 7, "users": 3}

    async def scale(self, shard_actors: int | None, ingestors: int | None) -> dict[str, int]:
        if shard_actors is not None and shard_actors > 8:
            raise InvalidRequestError(
                "", f"shard_actors: expected 1 to 8 (the logical shards), got {shard_actors}"
            )
        return {"shard_actors": shard_actors or 1, "ingestors": ingestors or 1, "version": 3}

    async def history(self) -> dict[str, Any]:
        columns = {"at": [1.5e9, 1.5e9 + 2], "events_per_s": [49.5, 50.0], "lag": [7, 0]}
        return columns | {
            "every_s": 2.0,
            "applied": [100, 200],
            "users": [3, 3],
            "windows": [1, 2],
            "trained": [1, 1],
            "promoted": [1, 1],
        }

    async def recent_users(self, count: int) -> list[str]:
        return ["anna", "bert", "carl"][:count]

    async def attack(self, order: dict[str, Any]) -> int:
        if order["items"]:
            raise ConflictError("attack 1 is sending; a new one can begin when it is done")
        return 2


class Silent:
    """A pipeline whose supervisor does not."""

    async def status(self) -> dict[str, Any]:
        raise UnavailableError("the supervisor did not answer within 2 s")


@contextmanager
def serve(recommender: Recommender, sink: Any = None, pipeline: Any = None) -> Iterator[httpx.Client]:
    """Serve the app for the length of a `with` block."""
    port = free_port()
    app = build_app(recommender, sink, pipeline or Silent())
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    up = threading.Event()
    startup = server.startup

    async def announced(sockets: Any = None) -> None:
        await startup(sockets)
        up.set()

    server.startup = announced  # type: ignore[method-assign]
    thread = threading.Thread(target=server.run)
    thread.start()
    assert up.wait(20)
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture
def client(recommender: Recommender) -> Iterator[httpx.Client]:
    with serve(recommender) as client:
        yield client


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    body = response.json()
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    assert body["instance"] == response.request.url.path
    return body


def test_recommendations_have_the_shape_that_was_agreed(client, recommender):
    answer = client.get("/v1/recommendations/anna", params={"k": 3})
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert set(body) == {"user_id", "items", "model", "state", "next"}
    assert [set(item) for item in body["items"]] == [{"item_id", "title", "score", "reasons"}] * 3
    assert set(body["model"]) == {"version", "age_s", "kind"}
    assert set(body["state"]) == {"known", "events", "partition", "offset", "age_ms"}
    assert body["items"] == recommender.recommend("anna", 3).model_dump()["items"]


def test_defaults_and_the_seen_filter(client):
    assert len(client.get("/v1/recommendations/anna").json()["items"]) == 10
    with_seen = client.get("/v1/recommendations/anna", params={"k": 20, "exclude_seen": False}).json()
    assert len(with_seen["items"]) == 20


def test_a_batch_of_a_user_and_a_session(client):
    session = {"events": [{"item_id": "i4", "type": "view", "timestamp": "2026-01-01T00:00:00Z"}], "k": 2}
    body = client.post("/v1/recommendations", json={"requests": [{"user_id": "anna"}, session]}).json()
    known, anonymous = body["results"]
    assert known["items"] == client.get("/v1/recommendations/anna").json()["items"]
    assert (anonymous["user_id"], len(anonymous["items"]), anonymous["state"]["known"]) == (None, 2, False)


def test_a_large_batch_leaves_the_event_loop_and_answers_in_order(client):
    users = [f"u{n}" for n in range(40)] + ["anna"]
    body = client.post("/v1/recommendations", json={"requests": [{"user_id": user} for user in users]}).json()
    assert [answer["user_id"] for answer in body["results"]] == users
    assert body["results"][-1]["state"]["known"]


@pytest.mark.parametrize("user", ["zoë/ünï", "a b", "%2F", "ключ", "x?y#z"])
def test_any_utf8_is_a_user_id(trained, user):
    trained.happen(event(user, "i4", 9), offset=3)
    recommender = trained.recommender()
    with serve(recommender) as client:
        answer = client.get("/v1/recommendations/" + quote(user, safe=""))
        assert (answer.json()["user_id"], answer.json()["state"]["known"]) == (user, True)
        assert client.get("/v1/users/" + quote(user, safe="")).json()["events"][0]["item_id"] == "i4"
    recommender.stop()


@pytest.mark.parametrize(
    ("path", "pointer"),
    [
        ("/v1/recommendations/anna?k=0", "query/k"),
        ("/v1/recommendations/anna?k=101", "query/k"),
        ("/v1/recommendations/anna?k=ten", "query/k"),
        ("/v1/recommendations/anna?exclude_seen=perhaps", "query/exclude_seen"),
        ("/v1/recommendations/" + "x" * 513, "path/user_id"),
        ("/v1/recommendations/", "path/user_id"),
    ],
)
def test_a_wrong_query_is_a_problem_that_names_the_field(client, path, pointer):
    body = problem(client.get(path), 422)
    assert [error["pointer"] for error in body["errors"]] == [pointer]


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"requests": []}, "/requests"),
        ({"requests": [{"user_id": "a"}] * 257}, "/requests"),
        ({"requests": [{"user_id": "a"}, {"user_id": "b", "k": 1000}]}, "/requests/1/k"),
        ({"requests": [{"user": "a"}]}, "/requests/0/user"),
        ({"requests": [{"events": [{"item_id": "", "type": "view"}]}]}, "/requests/0/events/0/item_id"),
        ({"requests": [{"events": [{"item_id": "i1", "type": "view", "timestamp": "soon"}]}]},
         "/requests/0/events/0/timestamp"),
    ],
)  # fmt: skip
def test_a_wrong_batch_is_a_problem_that_names_the_field(client, body, pointer):
    found = problem(client.post("/v1/recommendations", json=body), 422)
    assert found["errors"][0]["pointer"] == pointer


def test_other_errors_are_problems_too(client):
    problem(client.get("/v1/items/nix/similar"), 404)
    problem(client.get("/v1/users/nobody"), 404)
    problem(client.get("/nowhere"), 404)
    problem(client.delete("/v1/models"), 405)
    problem(client.post("/v1/recommendations", content=b"{not json"), 422)
    problem(client.post("/v1/recommendations", content=b'{"requests":[{"user_id":"\\ud800"}]}'), 422)


def test_an_unforeseen_error_is_a_problem_without_its_insides(client, recommender, monkeypatch):
    monkeypatch.setattr(recommender, "_search", lambda *_: 1 / 0)
    body = problem(client.get("/v1/recommendations/anna"), 500)
    assert "ZeroDivision" not in json.dumps(body)


def test_similar_items_and_users_and_models(client):
    similar = client.get("/v1/items/i1/similar", params={"k": 2}).json()
    assert (similar["title"], len(similar["items"])) == ("Item 1", 2)
    shown = client.get("/v1/users/anna").json()
    assert (shown["total"], shown["trust"], shown["quarantined"]) == (3, 1, False)
    models = client.get("/v1/models").json()
    [version] = models["versions"]
    assert (models["current"], models["serving"]["version"]) == ("v1", "v1")
    assert (version["status"], version["current"], version["reason"]) == ("promoted", True, "better")
    assert version["eval"] == {"ndcg@10": 0.25}
    assert version["lineage"]["windows"] == ["w1"]
    assert version["created_at"] == "2023-11-14T22:13:20.000+00:00"


@pytest.mark.parametrize(
    ("settings", "headers", "status"),
    [
        ({}, {}, 403),
        ({}, {"X-API-Key": KEY}, 403),
        ({"admin_api_key": KEY}, {}, 401),
        ({"admin_api_key": KEY}, {"X-API-Key": "wrong"}, 401),
        ({"admin_api_key": KEY}, {"X-API-Key": "schlüssel".encode()}, 401),
        ({"admin_api_key": KEY, "admin_open": True}, {}, 401),
        ({"admin_api_key": KEY}, {"X-API-Key": KEY}, 200),
        ({"admin_open": True}, {}, 200),
    ],
)
def test_promoting_needs_the_key(trained, settings, headers, status):
    trained.train("v2", seed=1)
    recommender = trained.recommender(**settings)
    with serve(recommender) as client:
        answer = client.post("/v1/models/v1/promote", headers=headers)
        now = client.get("/v1/models").json()["current"]
        if status == 200:
            assert answer.json() == {"current": "v1", "previous": "v2"}
            assert now == "v1"
        else:
            assert KEY not in json.dumps(problem(answer, status))
            assert now == "v2"
    recommender.stop()


def test_promoting_an_unknown_version_names_the_known_ones(trained):
    recommender = trained.recommender(admin_open=True)
    with serve(recommender) as client:
        assert "v1" in problem(client.post("/v1/models/v9/promote"), 404)["detail"]
        problem(client.post("/v1/models/..%2Fv1/promote"), 404)
    recommender.stop()


def test_stats_with_and_without_a_supervisor(recommender):
    with serve(recommender, pipeline=Running()) as client:
        client.get("/v1/recommendations/anna")
        stats = client.get("/v1/stats").json()
        assert (stats["lag"], stats["users"], stats["pipeline"]) == (7, 3, "reachable")
        assert stats["model"]["version"] == "v1"
        assert stats["request_ms"]["count"] == 1
        assert 0 < stats["request_ms"]["p50"] < 1000
    with serve(recommender, pipeline=Silent()) as client:
        answer = client.get("/v1/stats")
        assert answer.status_code == 200
        assert answer.json()["pipeline"] is None
        assert "supervisor" in answer.json()["note"]


def test_without_a_supervisor_the_real_pipeline_port_says_that_nobody_answers(recommender):
    with serve(recommender, pipeline=ServePipeline(0.5)) as client:
        stats = client.get("/v1/stats").json()
        assert stats["pipeline"] is None
        assert "supervisor" in stats["note"]  # another test may have a Ray running: then it did not answer


def test_health_readiness_and_metrics(client, tmp_path):
    assert client.get("/healthz").json()["status"] == "ok"
    assert client.get("/readyz").json() == {"status": "ok", "detail": "20 items, model v1"}
    client.get("/v1/recommendations/anna")
    client.get("/v1/recommendations/" + "x" * 513)
    text = client.get("/metrics").text
    route = 'route="/v1/recommendations/{user_id}"'
    assert f'headrace_request_duration_seconds_count{{method="GET",{route},status="200"}}' in text
    assert f'headrace_request_duration_seconds_count{{method="GET",{route},status="422"}}' in text
    assert 'headrace_model_info{kind="trained",version="v1"} 1.0' in text
    for stage in ("state", "encode", "retrieve", "policy"):
        assert f'headrace_stage_duration_seconds_count{{stage="{stage}"}}' in text

    empty = World(tmp_path / "empty").recommender()
    with serve(empty) as other:
        assert "items topic" in problem(other.get("/readyz"), 503)["detail"]
        assert other.get("/healthz").status_code == 200
    empty.stop()


def test_the_documentation_stands_alone(client):
    page = client.get("/docs").text
    assert "cdn" not in page
    assert client.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {
        "/v1/recommendations", "/v1/recommendations/{user_id}", "/v1/rank", "/v1/items/{item_id}/similar",
        "/v1/events",
        "/v1/users/{user_id}", "/v1/models", "/v1/models/{version}/promote", "/v1/stats", "/healthz", "/readyz",
        "/metrics", "/v1/pipeline/scale", "/v1/users", "/v1/stats/history", "/v1/attacks",
    }  # fmt: skip
    answer = paths["/v1/recommendations/{user_id}"]["get"]["responses"]
    assert answer["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/Recommendations")
    assert "application/problem+json" in answer["422"]["content"]


def test_scaling_needs_the_key_and_passes_on_why_a_number_cannot_be(trained):
    recommender = trained.recommender(admin_api_key=KEY)
    with serve(recommender, pipeline=Running()) as client:
        problem(client.post("/v1/pipeline/scale", json={"shard_actors": 4}), 401)
        client.headers["X-API-Key"] = KEY
        answer = client.post("/v1/pipeline/scale", json={"shard_actors": 4})
        assert (answer.status_code, answer.json()) == (202, {"shard_actors": 4, "ingestors": 1, "version": 3})
        refused = client.post("/v1/pipeline/scale", json={"shard_actors": 9})
        assert "expected 1 to 8" in problem(refused, 422)["detail"]
        problem(client.post("/v1/pipeline/scale", json={"shard_actors": 0}), 422)
    recommender.stop()


def test_an_erased_user_is_gone_and_the_proof_is_shown(trained):
    trained.happen({"user_id": "anna", "type": "$forget", "timestamp": 10 * 60_000}, offset=3)
    recommender = trained.recommender()
    with serve(recommender) as client:
        gone = problem(client.get("/v1/users/anna"), 410)
        [proof] = gone["erasures"]
        assert (proof["offset"], proof["events"], proof["erased_upto"]) == (3, 3, "1970-01-01T00:10:00.000Z")
        assert client.get("/v1/recommendations/anna").json()["state"]["known"] is False
        problem(client.get("/v1/users/nobody"), 404)
    recommender.stop()
    trained.happen(event("anna", "i4", 11), offset=4)
    recommender = trained.recommender()
    with serve(recommender) as client:
        back = client.get("/v1/users/anna").json()
        assert (back["total"], len(back["erasures"])) == (1, 1)
        problem(client.delete("/v1/users/anna"), 403)  # admin routes are off without a key
    recommender.stop()


# --- events, on the real broker --------------------------------------------------------------------------


def test_events_reach_the_topic_and_are_acknowledged(recommender, broker):
    kafka = KafkaSettings(bootstrap_servers=broker, partitions=2)
    ensure_topics(kafka, ["http-events"])
    sink = KafkaSink(
        kafka,
        Source(topic="http-events", fields=FieldPaths(item_id="payload.item", type="context.kind")),
        timeout_s=15,
    )
    with serve(recommender, sink=sink) as client:
        events = [
            {"user_id": "ännä", "item_id": "i4", "type": "view", "event_id": "e1", "timestamp": 1000},
            {"user_id": "ännä", "item_id": "i5", "type": "click", "value": 2.5, "context": {"page": 1}},
        ]
        answer = client.post("/v1/events", json={"events": events})
        assert answer.status_code == 202
        first, second = answer.json()["accepted"]
        assert first["event_id"] == "e1"
        assert len(second["event_id"]) == 36
        assert (second["partition"], second["offset"]) == (first["partition"], first["offset"] + 1)
    sink.close()

    consumer = make_consumer(kafka)
    partition = TopicPartition("http-events", first["partition"])
    consumer.assign([partition])
    consumer.seek(partition, first["offset"])
    records = []
    for _ in range(100):
        records += [r for batch in consumer.poll(timeout_ms=200).values() for r in batch]
        if len(records) >= 2:
            break
    consumer.close()
    one, two = (json.loads(record.value) for record in records)
    assert records[0].key.decode() == "ännä"
    assert one == {
        "event_id": "e1", "user_id": "ännä", "payload": {"item": "i4"}, "context": {"kind": "view"},
        "timestamp": 1000,
    }  # fmt: skip
    assert (two["context"], two["value"]) == ({"page": 1, "kind": "click"}, 2.5)
    assert two["timestamp"] > 1_700_000_000_000


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"type": "sneeze"}, "/events/1/type"),
        ({"item_id": ""}, "/events/1/item_id"),
        ({"user_id": 5}, "/events/1/user_id"),
        ({"timestamp": 10**15}, "/events/1/timestamp"),
        ({"item_id": "x" * 513}, "/events/1/item_id"),
        ({"value": "much"}, "/events/1/value"),
        ({"value": 1e10}, "/events/1/value"),
        ({"timestamp": -(10**14)}, "/events/1/timestamp"),
        ({"user_id": "a\0b"}, "/events/1/user_id"),
        ({"itemid": "i1"}, "/events/1/itemid"),
    ],
)
def test_one_wrong_event_publishes_none(client, change, pointer):
    """The client's sink is None: to publish anything would be a 500."""
    good = {"user_id": "anna", "item_id": "i1", "type": "view"}
    body = problem(client.post("/v1/events", json={"events": [good, good | change]}), 422)
    assert body["errors"][0]["pointer"] == pointer


def test_without_a_broker_events_are_refused_in_time(recommender):
    kafka = KafkaSettings(bootstrap_servers=f"127.0.0.1:{free_port()}", request_timeout_s=0.5)
    with serve(recommender, sink=KafkaSink(kafka, Source(), timeout_s=0.5)) as client:
        body = problem(
            client.post("/v1/events", json={"events": [{"user_id": "a", "item_id": "b", "type": "view"}]}),
            503,
        )
        assert "0 of 1 events" in body["detail"]
        assert client.get("/v1/recommendations/anna").status_code == 200
