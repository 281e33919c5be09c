"""One ranking as the engine takes it, whichever route it came by, and what comes of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from serving.models import InlineEvent, RankRequest, RecommendationQuery, RecommendationRequest
from streaming import traces


@dataclass(slots=True)  # made for each request: frozen ones take three times as long
class Ask:
    """A ranking that is wanted.

    Attributes:
        user_id: None for an anonymous session. events: told with the request.
        k: items wanted; None: the setting. exclude_seen: None: the setting.
        exclude: item ids that may not be shown. filter: see `serving.filters`; None: everything.
        among: item ids to choose from and nothing else; None: the whole catalogue.
        diversity: 0..1, None: the setting. explain: with the events that moved each item.
        cursor: where the page before ended. session: a name that an anonymous session keeps, for experiments.
        place: where the ranking stands in the body of the request, for errors: ``/requests/3``.
        request_id: of the HTTP request. tags: entity tags that the caller knows.
        trace: traceparent of the request, where that is traced.
    """

    user_id: str | None = None
    events: Sequence[InlineEvent] = ()
    k: int | None = None
    exclude_seen: bool | None = None
    exclude: Sequence[str] = ()
    filter: str | None = None
    among: Sequence[str] | None = None
    diversity: float | None = None
    explain: bool = False
    cursor: str | None = None
    session: str | None = None
    place: str = ""
    request_id: str | None = None
    tags: str | None = None
    trace: str | None = field(default_factory=traces.current.get)

    @classmethod
    def by_query(
        cls,
        user_id: str,
        query: RecommendationQuery,
        request_id: str | None = None,
        tags: str | None = None,
    ) -> "Ask":
        """``GET /v1/recommendations/{user_id}``; errors of its parameters are told by ``query/…``."""
        told = vars(query)
        return cls(user_id=user_id, place="query", request_id=request_id, tags=tags, **told)

    @classmethod
    def by_request(cls, request: RecommendationRequest, place: str, request_id: str | None = None) -> "Ask":
        """One of ``POST /v1/recommendations``."""
        return cls(place=place, request_id=request_id, **vars(request))

    @classmethod
    def by_candidates(cls, request: RankRequest, request_id: str | None = None) -> "Ask":
        """``POST /v1/rank``: every candidate that is known, seen or not, unless the request says otherwise."""
        told = dict(vars(request))
        items = told.pop("items")
        told["k"] = len(items) if request.k is None else request.k
        told["exclude_seen"] = bool(request.exclude_seen)
        return cls(among=items, request_id=request_id, **told)

    def plain(self) -> bool:
        """Whether nothing but k, and what was seen, says what may be shown."""
        return not (self.exclude or self.filter or self.among is not None)
