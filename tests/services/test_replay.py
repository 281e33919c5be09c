"""The replay against a real broker and a small HTTP server that stands for the API."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError

from services.client import ApiClient
from services.errors import ApiError, SendError
from services.freshness import FreshnessSampler
from services.replay import Replay, ReplayError, ReplayKnobs
from services.report import settle
from services.sender import Sender
from streaming.broker import EmbeddedBroker
from streaming.config import KafkaSettings
from streaming.kafka import ensure_topics, make_consumer, make_producer, partitions_of
from tests.services.fake_api import FakeApi, serve
from tests.services.test_prequential import dataset_of

EVENTS = [(f"u{n % 7}", f"i{n % 11}") for n in range(400)]
STATS: dict[str, Any] = {
    "events": {"applied": 0, "duplicates": 0, "dead_lettered": 0, "late": 0, "rate_per_s": 0.0},
    "windows": 3,
    "models": {"trained": 2, "promoted": 1, "rejected": 1},
    "learner": {"phase": "waiting"},
}


@pytest.fixture(scope="module")
def own_broker() -> Iterator[EmbeddedBroker]:
    with EmbeddedBroker() as running:
        yield running


def events_of(kafka: KafkaSettings) -> str:
    """The topic of events beside this topic of items."""
    return kafka.items_topic.replace(".items", ".events")


@pytest.fixture
def kafka(own_broker: EmbeddedBroker, request: pytest.FixtureRequest) -> KafkaSettings:
    name = request.node.name
    settings = KafkaSettings(
        bootstrap_servers=own_broker.bootstrap_servers,
        items_topic=f"{name}.items",
        dead_letter_topic=f"{name}.dead",
        request_timeout_s=10,
    )
    ensure_topics(settings, [events_of(settings)])
    return settings


@pytest.fixture
def api() -> Iterator[FakeApi]:
    with serve(FakeApi(stats=json.loads(json.dumps(STATS)))) as running:
        yield running


@pytest.fixture
def producer(kafka: KafkaSettings) -> Iterator[KafkaProducer]:
    running = make_producer(kafka)
    yield running
    running.close(timeout=2)


@pytest.fixture
def replay_of(kafka: KafkaSettings, producer: KafkaProducer, api: FakeApi) -> Callable[..., Replay]:
    def make(**knobs: Any) -> Replay:
        client = ApiClient(api.url, timeout_s=1.0)
        topics = {"events_topic": events_of(kafka), "items_topic": kafka.items_topic}
        return Replay(dataset_of(EVENTS), producer, client, ReplayKnobs(**knobs), **topics)

    return make


def read_all(kafka: KafkaSettings, topic: str, count: int) -> list[Any]:
    consumer: KafkaConsumer = make_consumer(kafka)
    partitions = [TopicPartition(topic, number) for number in partitions_of(kafka, topic)]
    consumer.assign(partitions)
    consumer.seek_to_beginning(*partitions)
    records: list[Any] = []
    deadline = time.monotonic() + 15
    while len(records) < count and time.monotonic() < deadline:
        for batch in consumer.poll(timeout_ms=200).values():
            records += batch
    consumer.close(autocommit=False)
    return records


def test_the_catalogue_is_published_keyed_by_item(
    replay_of: Callable[..., Replay], kafka: KafkaSettings, api: FakeApi
) -> None:
    progress: list[tuple[int, int]] = []
    assert replay_of().publish_items(lambda done, total: progress.append((done, total))) == 11
    records = read_all(kafka, kafka.items_topic, 11)
    assert {record.key.decode(): json.loads(record.value)["title"] for record in records} == {
        f"i{n}": f"i{n}" for n in range(11)
    }
    assert progress[-1] == (11, 11)


def test_history_then_a_steady_part_sends_every_event_once_in_each_users_order(
    replay_of: Callable[..., Replay], kafka: KafkaSettings, api: FakeApi
) -> None:
    api.items = ["i0", "i1", "i2"]
    replay = replay_of(rate=400.0, requests_per_s=100.0, freshness_per_s=0.0)
    assert replay.publish_events(0, 200) == 200
    began = time.monotonic()
    replay.start_steady(200)
    while not replay.steady_done() and time.monotonic() - began < 10:
        time.sleep(0.02)
    assert replay.stop_steady() == 400
    assert 0.45 < time.monotonic() - began < 5  # 200 events at 400/s
    assert replay.produced == 400

    records = read_all(kafka, events_of(kafka), 400)
    rows = [(record.partition, record.offset, json.loads(record.value)) for record in records]
    assert len({value["event_id"] for _, _, value in rows}) == len(rows) == 400
    assert all(
        record.key.decode() == value["user_id"] for record, (_, _, value) in zip(records, rows, strict=True)
    )
    for partition in {
        partition for partition, _, _ in rows
    }:  # event time never runs backwards in a partition
        times = [
            value["timestamp"] for number, _, value in sorted(rows, key=lambda r: r[1]) if number == partition
        ]
        assert times == sorted(times)

    score = replay.snapshot().prequential
    assert score.requests == 50  # one in four
    assert 0 < (score.hit_rate or 0) < 1
    hits = sum(EVENTS[row][1] in api.items for row in range(200, 400, 4))
    assert score.hit_rate == pytest.approx(hits / 50)


def test_a_stream_with_repeats_asks_for_seen_items_too(
    replay_of: Callable[..., Replay], api: FakeApi
) -> None:
    replay = replay_of(rate=200.0, requests_per_s=200.0, freshness_per_s=0.0)
    assert replay.repeat_share == pytest.approx(1 - 77 / 400)
    assert not replay.exclude_seen
    replay.start_steady(0, 20)
    replay.stop_steady()
    assert {query["exclude_seen"] for _, query in api.asked} <= {"false"}
    assert replay_of(exclude_seen=True).exclude_seen


def test_a_failing_endpoint_is_counted_and_does_not_stop_the_stream(
    replay_of: Callable[..., Replay], api: FakeApi
) -> None:
    api.status = 503
    replay = replay_of(rate=500.0, requests_per_s=50.0, freshness_per_s=0.0)
    replay.start_steady(0, 100)
    began = time.monotonic()
    while not replay.steady_done() and time.monotonic() - began < 10:
        time.sleep(0.02)
    assert replay.stop_steady() == 100
    now = replay.snapshot()
    assert (now.produced, now.prequential.failed, now.errors) == (100, 10, 10)
    assert "503" in (now.last_error or "")
    assert now.prequential.requests == 0


def test_stopping_early_reports_exactly_what_was_sent(
    replay_of: Callable[..., Replay], kafka: KafkaSettings, api: FakeApi
) -> None:
    api.delay_s = 0.05
    replay = replay_of(rate=100.0, requests_per_s=50.0, freshness_per_s=0.0)
    replay.start_steady(0)
    threading.Event().wait(0.4)
    reached = replay.stop_steady()
    assert 0 < reached < 200
    assert replay.produced == reached
    ids = {json.loads(record.value)["event_id"] for record in read_all(kafka, events_of(kafka), reached)}
    assert {int(name.rsplit("-", 1)[1]) for name in ids} == set(range(reached))


def test_a_hanging_endpoint_does_not_hold_up_the_end(replay_of: Callable[..., Replay], api: FakeApi) -> None:
    api.delay_s = 1.5
    replay = replay_of(rate=200.0, requests_per_s=200.0, freshness_per_s=0.0, max_waiting=0)
    replay.start_steady(0)
    threading.Event().wait(0.3)
    began = time.monotonic()
    reached = replay.stop_steady()
    assert time.monotonic() - began < 3
    assert replay.produced == reached
    assert replay.snapshot().prequential.skipped > 0


def test_close_ends_a_replay_that_runs_and_one_that_never_began(
    replay_of: Callable[..., Replay], kafka: KafkaSettings
) -> None:
    replay_of().close()
    replay = replay_of(rate=100.0)
    replay.start_steady(0)
    replay.close()
    sent = replay.produced
    threading.Event().wait(0.1)
    assert replay.produced == sent < 400


def test_freshness_ends_when_the_state_includes_the_event(
    kafka: KafkaSettings, producer: KafkaProducer, api: FakeApi
) -> None:
    client = ApiClient(api.url)
    sampler = FreshnessSampler(client, per_s=100.0)
    sampler.start()
    api.partition, api.offset = 99, 99  # another partition is no evidence
    called_at = time.monotonic()
    record = producer.send(events_of(kafka), key=b"u", value=b"{}")
    metadata = record.get(timeout=10)
    assert sampler.offer("u", called_at, record)
    assert not sampler.offer("u", called_at + 1, record)  # one at a time
    threading.Event().wait(0.2)
    assert sampler.score().count == 0
    api.partition, api.offset = metadata.partition, metadata.offset
    deadline = time.monotonic() + 5
    while sampler.score().count == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    sampler.close()
    score = sampler.score()
    assert (score.count, score.failed) == (1, 0)
    assert 200 <= (score.p50 or 0) < 2000


def test_an_event_that_never_shows_counts_as_failed_with_the_time_waited(
    kafka: KafkaSettings, producer: KafkaProducer, api: FakeApi
) -> None:
    sampler = FreshnessSampler(ApiClient(api.url), per_s=100.0, timeout_s=0.2)
    sampler.start()
    record = producer.send(events_of(kafka), key=b"u", value=b"{}")
    sampler.offer("u", time.monotonic(), record)
    deadline = time.monotonic() + 5
    while sampler.score().failed == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    sampler.close()
    assert sampler.score().failed == 1
    assert (sampler.score().p99 or 0) >= 200


def test_waiting_for_a_trained_model(replay_of: Callable[..., Replay], api: FakeApi) -> None:
    api.kind = "popular"
    replay = replay_of()
    with pytest.raises(ReplayError, match="no trained model answered within 0 s"):
        replay.wait_for_trained_model(0.2, poll_s=0.05)
    assert replay.seconds_to_first_recommendation is None
    threading.Timer(0.2, lambda: setattr(api, "kind", "trained")).start()
    assert replay.wait_for_trained_model(5, poll_s=0.05) >= 0.2
    assert replay.seconds_to_first_recommendation is not None


def test_the_report_waits_until_every_event_is_accounted_for(
    replay_of: Callable[..., Replay], api: FakeApi
) -> None:
    replay = replay_of()
    replay.publish_events(0, 100)
    events = api.stats["events"]
    events["applied"] = 90
    threading.Timer(0.3, lambda: events.update(applied=95, duplicates=3, dead_lettered=2)).start()
    report = replay.settle(timeout_s=10)
    assert {
        name: report["events"][name] for name in ("produced", "applied", "duplicates", "dead_lettered")
    } == {
        "produced": 100,
        "applied": 95,
        "duplicates": 3,
        "dead_lettered": 2,
    }
    assert report["events"]["settled"]
    assert (report["windows"], report["models"]) == (3, {"trained": 2, "promoted": 1, "rejected": 1})
    assert set(report["request_ms"]) >= {"p50", "p99", "count", "errors"}
    assert set(report["freshness_ms"]) >= {"p50", "p99"}
    assert set(report["prequential"]) >= {"requests", "hit_rate@10", "ndcg@10", "popularity_hit_rate@10"}
    json.dumps(report, allow_nan=False)


def test_events_that_never_arrive_are_reported_not_hidden(api: FakeApi) -> None:
    settled, stats = settle(ApiClient(api.url), produced=5, timeout_s=0.2)
    assert not settled
    assert stats["events"]["applied"] == 0


def test_statistics_without_the_pipelines_figures_are_no_answer(api: FakeApi) -> None:
    figures = api.stats.pop("events")
    threading.Timer(0.3, lambda: api.stats.update(events={**figures, "applied": 5})).start()
    settled, stats = settle(ApiClient(api.url), produced=5, timeout_s=10)
    assert (settled, stats["events"]["applied"]) == (True, 5)
    api.stats.pop("events")
    with pytest.raises(ApiError, match="no figures of the pipeline"):
        settle(ApiClient(api.url), produced=5, timeout_s=0.1)


def test_models_are_listed(api: FakeApi) -> None:
    api.versions = [{"version": "v2"}, {"version": "v1"}]
    assert [entry["version"] for entry in ApiClient(api.url).models()] == ["v2", "v1"]


def test_a_client_without_an_answer_says_where_it_asked() -> None:
    client = ApiClient("http://127.0.0.1:9", timeout_s=0.5)
    assert not client.ready()
    with pytest.raises(ApiError, match="GET /v1/recommendations/a%2Fb"):
        client.recommend("a/b")
    with pytest.raises(ApiError):
        settle(client, produced=1, timeout_s=0.1)
    assert client.errors == 1  # recommendations only; the view asks for statistics before the API is up
    assert not client.alive()


def test_a_slow_answer_is_an_error_after_the_time_out(api: FakeApi) -> None:
    api.delay_s = 1.0
    client = ApiClient(api.url, timeout_s=0.2)
    began = time.monotonic()
    with pytest.raises(ApiError, match=r"timed out|Timeout"):
        client.recommend("u")
    assert time.monotonic() - began < 0.9
    assert (client.errors, client.latencies.percentiles().count) == (1, 0)


class _RefusingFuture:
    is_done = True

    def get(self, timeout: float) -> None:
        raise KafkaError("disk full")


class _RefusingProducer:
    def send(self, topic: str, **_: object) -> _RefusingFuture:
        return _RefusingFuture()


def test_a_record_that_the_broker_refuses_raises() -> None:
    with pytest.raises(SendError, match=r"topic 'events' failed after 1 records.*disk full"):
        Sender(_RefusingProducer(), "events").send("u", {})
