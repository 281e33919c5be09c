"""An event without an id gets one that a repeated request repeats, so that it counts once."""

import contextvars

from serving import request_id
from serving.models import NewEvent
from serving.ports import _id_of

EVENT = NewEvent(user_id="anna", item_id="i1", type="view")


def ids_of(name: bytes | None, *events: NewEvent) -> list[str]:
    def ask() -> list[str]:
        request_id.begin(name)
        return [_id_of(event, place) for place, event in enumerate(events)]

    return contextvars.copy_context().run(ask)


def test_the_same_request_names_its_events_alike():
    first = ids_of(b"abc", EVENT, EVENT)
    assert first == ids_of(b"abc", EVENT, EVENT)
    assert len({*first}) == 2  # two events of one request are two events
    other = EVENT.model_copy(update={"item_id": "i2"})
    assert not {*first} & {*ids_of(b"abc", other, other)}  # a name used twice takes nothing away


def test_other_requests_name_them_otherwise():
    assert ids_of(b"abc", EVENT) != ids_of(b"abd", EVENT)
    assert ids_of(None, EVENT) != ids_of(None, EVENT)
    assert _id_of(EVENT, 0) != _id_of(EVENT, 0)
