"""Impressions in the topic: whole, in order, and never at the cost of a request."""

import json
import threading
import uuid

import pytest

from services.topic_reader import TopicReader
from serving.ask import Ask
from serving.errors import InvalidRequestError
from serving.experiments import metrics
from serving.experiments.config import ImpressionSettings
from serving.impressions import ImpressionLog, record_of
from serving.models import ExperimentState, ModelState, Recommendations, RecommendedItem, UserState
from serving.pages import Cursor
from serving.ranking import Answered
from streaming.config import KafkaSettings
from streaming.errors import BrokerError


def shown(user="anna", items=("i1", "i2"), propensity=None, **more):
    state = UserState(known=True, events=3, partition=1, offset=42, age_ms=5)
    listed = [
        RecommendedItem(item_id=item, title="", score=9.0 - n, reasons=[], propensity=propensity)
        for n, item in enumerate(items)
    ]
    model = ModelState(version="v1", age_s=1, kind="trained")
    return Answered(Recommendations(user_id=user, items=listed, model=model, state=state, **more))


def lost(why):
    return metrics.IMPRESSIONS_LOST.labels(why)._value.get()


def test_impressions_are_in_the_topic_keyed_by_user(broker):
    settings = ImpressionSettings(enabled=True, topic=f"shown-{uuid.uuid4().hex[:6]}")
    kafka = KafkaSettings(bootstrap_servers=broker, partitions=2)
    written = metrics.IMPRESSIONS_WRITTEN._value.get()
    log = ImpressionLog(kafka, settings, clock_ms=lambda: 7)
    part = ExperimentState(name="wider", arm="control")
    log.log(
        [
            Ask(user_id="anna", request_id="r1"),
            Ask(user_id="bob"),
            Ask(user_id="cat"),
            Ask(session="s", user_id=None),
        ],
        [
            shown(experiment=part),
            InvalidRequestError("/k", "no"),
            Answered(None, "tag"),
            shown(None, propensity=0.5),
        ],
    )
    log.close()
    assert metrics.IMPRESSIONS_WRITTEN._value.get() == written + 2
    with TopicReader(kafka, settings.topic) as reader:
        found = {record.key: json.loads(record.value) for record in reader.read(reader.everything())}
    assert found[b"anna"] == {
        "request_id": "r1",
        "user_id": "anna",
        "session": None,
        "time": 7,
        "experiment": "wider",
        "arm": "control",
        "model": "v1",
        "state_partition": 1,
        "state_offset": 42,
        "positions": [0, 1],
        "items": ["i1", "i2"],
        "scores": [9.0, 8.0],
        "propensities": None,
    }
    assert (found[b"s"]["user_id"], found[b"s"]["session"], found[b"s"]["propensities"]) == (
        None,
        "s",
        [0.5, 0.5],
    )


def test_a_later_page_says_where_its_items_stand():
    ask = Ask(user_id="anna", cursor=Cursor("0123456789abcdef", 20).text())
    assert record_of(ask, shown().body, 0)["positions"] == [20, 21]


def test_a_broker_that_is_away_costs_impressions_and_no_request():
    asked = threading.Event()

    def connect(kafka, topic):
        asked.set()
        raise BrokerError("away")

    log = ImpressionLog(KafkaSettings(), ImpressionSettings(queue=3), connect=connect)
    before = lost("queue_full")
    for _ in range(5):
        log.log([Ask(user_id="anna")], [shown()])
    assert asked.wait(10)
    assert lost("queue_full") == before + 2
    log.close()
    assert not log._thread.is_alive()


class FailingProducer:
    def __init__(self):
        self.tried = threading.Semaphore(0)

    def send(self, topic, key, value):
        from kafka.errors import KafkaTimeoutError

        self.tried.release()
        raise KafkaTimeoutError("no metadata")

    def close(self, timeout):
        pass


def test_what_the_producer_does_not_take_is_counted():
    producer = FailingProducer()
    before = lost("broker")
    log = ImpressionLog(KafkaSettings(), ImpressionSettings(), connect=lambda kafka, topic: producer)
    log.log([Ask(user_id="anna")], [shown()])
    assert producer.tried.acquire(timeout=10)
    log.close()
    assert lost("broker") == before + 1


@pytest.mark.parametrize("share", [0.3, 1.0])
def test_a_share_is_of_users_always_the_same_ones(share):
    hold = threading.Event()

    def connect(kafka, topic):
        hold.wait(10)
        raise BrokerError("held")

    log = ImpressionLog(KafkaSettings(), ImpressionSettings(share=share), connect=connect)
    users = [f"user-{n}" for n in range(1000)]
    for _ in range(2):
        log.log([Ask(user_id=user) for user in users], [shown(user) for user in users])
    waiting = [one.ask.user_id for one in log._waiting.queue]
    assert waiting[: len(waiting) // 2] == waiting[len(waiting) // 2 :]
    assert len(waiting) / 2000 == pytest.approx(share, abs=0.05)
    hold.set()
    log.close()
