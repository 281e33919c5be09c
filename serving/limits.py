"""Holds requests against the settings; a refusal names field, bound, setting and what was seen."""

import time
from collections.abc import Sequence

from serving.ask import Ask
from serving.config import ServingSettings
from serving.errors import InvalidRequestError
from serving.models import NewEvent, RecommendationRequest
from streaming.config import StreamingSettings
from streaming.formats.mapping import MAX_VALUE


class Limits:
    """What a request may ask for. All methods raise `InvalidRequestError`."""

    def __init__(self, streaming: StreamingSettings, serving: ServingSettings) -> None:
        self._streaming, self._serving = streaming, serving

    def check_id(self, value: str, pointer: str) -> None:
        """Refuse an id that is empty or too long, or that no event could have."""
        _length(value, self._serving.max_id_length, "serving.max_id_length", pointer)
        _no_nul(value, pointer)

    def asks(self, requests: Sequence[RecommendationRequest], request_id: str | None = None) -> list[Ask]:
        """The rankings of a batch; refuse one that is too large, or holds a request out of bounds."""
        _count(requests, self._serving.batch_max, "serving.batch_max", "/requests")
        asks = [
            Ask.by_request(request, f"/requests/{place}", request_id)
            for place, request in enumerate(requests)
        ]
        for ask in asks:
            self.check_ask(ask)
        return asks

    def check_ask(self, ask: Ask) -> None:
        """Refuse a ranking that is out of bounds."""
        place, serving = ask.place, self._serving
        if ask.k is not None and ask.among is None and not 1 <= ask.k <= serving.k_max:
            raise InvalidRequestError(
                f"{place}/k", f"expected 1 to {serving.k_max} (setting serving.k_max), got {ask.k}"
            )
        if ask.user_id is not None:
            pointer = "path/user_id" if place == "query" else f"{place}/user_id"
            self.check_id(ask.user_id, pointer)
        if ask.session is not None:
            self.check_id(ask.session, f"{place}/session")
        for name, ids, limit in (
            ("exclude", ask.exclude, "exclude_max"),
            ("items", ask.among or (), "candidates_max"),
        ):
            if ids:
                _count(ids, getattr(serving, limit), f"serving.{limit}", f"{place}/{name}")
                for number, item in enumerate(ids):
                    self.check_id(item, f"{place}/{name}/{number}")
        if ask.events:
            _count(ask.events, serving.inline_events_max, "serving.inline_events_max", f"{place}/events")
            for number, event in enumerate(ask.events):
                self._check_type(event.type, f"{place}/events/{number}/type")
                self.check_id(event.item_id, f"{place}/events/{number}/item_id")

    def check_events(self, events: Sequence[NewEvent]) -> None:
        """Hold events against what the ingestor will accept, so that none ends as a dead letter."""
        _count(events, self._serving.events_max, "serving.events_max", "/events")
        for position, event in enumerate(events):
            place = f"/events/{position}"
            self._check_type(event.type, f"{place}/type")
            if event.timestamp is not None:
                self._check_time(event.timestamp, f"{place}/timestamp")
            if event.value is not None and abs(event.value) > MAX_VALUE:
                raise InvalidRequestError(
                    f"{place}/value", f"expected at most {MAX_VALUE:g} either way, got {event.value}"
                )
            for name in ("user_id", "item_id", "event_id"):
                value = getattr(event, name)
                if value is not None:
                    limit = self._streaming.max_id_length
                    _length(value, limit, "streaming.max_id_length", f"{place}/{name}")
                    _no_nul(value, f"{place}/{name}")

    def _check_time(self, time_ms: int, pointer: str) -> None:
        ahead_s, behind_s = self._streaming.max_future_s, self._streaming.max_past_s
        if time_ms > (time.time() + ahead_s) * 1000:
            expected = f"at most {ahead_s:g} s ahead of now (setting streaming.max_future_s)"
        elif time_ms < (time.time() - behind_s) * 1000:
            expected = (
                f"at most {behind_s:g} s behind now (setting streaming.max_past_s; times are milliseconds)"
            )
        else:
            return
        raise InvalidRequestError(pointer, f"expected {expected}, got {time_ms}")

    def _check_type(self, name: str, pointer: str) -> None:
        if name not in self._streaming.event_types:
            known = ", ".join(self._streaming.event_types)
            raise InvalidRequestError(
                pointer, f"expected one of {known} (setting streaming.event_types), got {name[:60]!r}"
            )


def _length(value: str, limit: int, setting: str, pointer: str) -> None:
    if not 0 < len(value) <= limit:
        raise InvalidRequestError(
            pointer, f"expected 1 to {limit} characters (setting {setting}), got {len(value)}"
        )


def _no_nul(value: str, pointer: str) -> None:
    if "\0" in value:
        raise InvalidRequestError(pointer, "holds a NUL character; expected text")


def _count(values: Sequence[object], limit: int, setting: str, pointer: str) -> None:
    if len(values) > limit:
        raise InvalidRequestError(pointer, f"expected at most {limit} (setting {setting}), got {len(values)}")
