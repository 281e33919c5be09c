"""The way back: an event written as a record of a source, so that its mapping reads it as meant."""

from collections.abc import Mapping
from typing import Any

from streaming.config import Source
from streaming.formats.mapping import FORGET_TYPE, RECORD_TIME, epoch_ms


class ShapeError(ValueError):
    """The source cannot hold this event: what its mapping reads is not what was meant."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field, self.reason = field, reason


class RecordShape:
    """Writes events in the form that a JSON source has."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._spelling: dict[str, str] = {}  # our type -> theirs
        for theirs, ours in source.types.items():
            self._spelling.setdefault(ours, theirs)

    @property
    def uses_record_time(self) -> bool:
        """Whether the time of an event is that of its Kafka record."""
        return self._source.constants.get("timestamp") == RECORD_TIME

    def document(self, fields: Mapping[str, Any], around: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Write an event.

        Args:
            fields: values by the names of the Event contract; None: the event has none.
            around: what else the record is to hold; the event's own fields go before it.

        Raises:
            ShapeError: the source has no place for a value, or has another one for it.
        """
        own: dict[str, Any] = {}
        for field, value in fields.items():
            if value is None:
                continue
            if field in self._source.constants:
                self._expect_constant(field, value)
                continue
            path = getattr(self._source.fields, field)
            if path is not None:
                _put(own, path, self._type(value) if field == "type" else value)
        return _merged(around or {}, own)

    def erasure(self, user_id: str, event_id: str, time_ms: int) -> dict[str, Any] | None:
        """Write the record that asks to forget a user; None: the source can only be told by a tombstone."""
        if self._source.format != "json" or self._source.constants.keys() & {"type", "user_id"}:
            return None
        fields = {"user_id": user_id, "event_id": event_id, "type": FORGET_TYPE, "timestamp": time_ms}
        if isinstance(self._source.constants.get("timestamp"), str):
            del fields["timestamp"]
        try:
            return self.document(fields)
        except ShapeError:
            return None

    def _type(self, ours: str) -> str:
        theirs = self._spelling.get(ours, ours)
        if self._source.types.get(theirs, theirs) != ours:
            read = self._source.types[theirs]
            raise ShapeError(
                "type", f"topic {self._source.topic!r} would read {ours!r} as {read!r} (setting types)"
            )
        return theirs

    def _expect_constant(self, field: str, value: Any) -> None:
        constant = self._source.constants[field]  # type: ignore[index]
        if field == "timestamp":
            same = constant == RECORD_TIME or value == epoch_ms(
                int(constant) if constant.lstrip("-").isdecimal() else constant
            )
        elif field == "value":
            same = value == float(constant)
        else:
            same = value == constant
        if not same and field != "event_id":
            raise ShapeError(
                field,
                f"every event of topic {self._source.topic!r} has {constant!r} (setting constants.{field}), "
                f"got {value!r}",
            )


def _put(record: dict[str, Any], path: str, value: Any) -> None:
    *parents, leaf = path.split(".")
    node = record
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value


def _merged(around: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """Both documents in one; where they meet, `own` is right."""
    both = dict(around)
    for name, value in own.items():
        below = both.get(name)
        both[name] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return both
