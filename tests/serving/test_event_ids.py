"""An event without an id gets one that a repeated request repeats, so that it counts once."""

import asyncio
import contextvars

import pytest

from serving import request_id
from serving.errors import InvalidRequestError
from serving.models import NewEvent
from serving.ports import KafkaSink, _id_of
from streaming.config import KafkaSettings, Source

EVENT = NewEvent(user_id="anna", item_id="i1", type="view")


def ids_of(name: bytes | None, *events: NewEvent) -> list[str]:
    def ask() -> list[str]:
        request_id.begin(name)
        return [_id_of(event, place) for place, event in enumerate(events)]

    return contextvars.Context().run(ask)


def test_the_same_request_names_its_events_alike():
    first = ids_of(b"abc", EVENT, EVENT)
    assert first == ids_of(b"abc", EVENT, EVENT)
    assert len({*first}) == 2  # two events of one request are two events
    other = EVENT.model_copy(update={"item_id": "i2"})
    assert not {*first} & {*ids_of(b"abc", other, other)}  # a name used twice takes nothing away


def test_other_requests_name_them_otherwise():
    assert ids_of(b"abc", EVENT) != ids_of(b"abd", EVENT)
    assert ids_of(None, EVENT) != ids_of(None, EVENT)
    outside = [contextvars.Context().run(_id_of, EVENT, 0) for _ in range(2)]
    assert outside[0] != outside[1]


def test_a_number_that_json_cannot_hold_is_refused_by_its_place():
    sink = KafkaSink(KafkaSettings(), Source(topic="nobody-is-asked"), timeout_s=0.1)
    endless = EVENT.model_copy(update={"context": {"a": float("inf")}})
    with pytest.raises(InvalidRequestError) as refused:
        asyncio.run(sink.produce([EVENT, endless]))
    assert refused.value.pointer == "/events/1/context"
