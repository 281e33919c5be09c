"""Requests and answers of the HTTP API, as they stand in the OpenAPI document.

Answers are validated as they are built, but for the items of a list: ten plain dataclasses save some 10 µs of a
request, and what fills them is typed.
"""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from streaming.events import epoch_ms

EpochMs = Annotated[
    int,
    BeforeValidator(epoch_ms),
    WithJsonSchema({"anyOf": [{"type": "integer"}, {"type": "string", "format": "date-time"}]}),
]


def _absent(value: object) -> bool:
    return value is None


class Request(BaseModel):
    """Base of request bodies: unknown names are refused, so that a typing error does not pass silently."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Answer(BaseModel):
    """Base of answers."""

    model_config = ConfigDict(frozen=True)


# --- recommendations -------------------------------------------------------------------------------------


class InlineEvent(Request):
    """An event told with the request, not stored."""

    item_id: str = Field(min_length=1, examples=["50"])
    type: str = Field(description="one of the setting streaming.event_types", examples=["view"])
    timestamp: EpochMs | None = Field(
        None, description="epoch ms or ISO 8601; the time of the request if absent"
    )


class RankingOptions(Request):
    """What may be said of any ranking."""

    k: int | None = Field(None, ge=1, description="items wanted; setting serving.k_default if absent")
    exclude_seen: bool | None = Field(
        None, description="leave out what the user has touched; default by setting"
    )
    exclude: tuple[str, ...] = Field((), description="ids of items that may not be shown", examples=[["50"]])
    filter: str | None = Field(
        None,
        description="expression that items must meet, over category, item_id, title, available, new and the "
        "catalogue's attributes: = != < <= > >= in and or not exists() and parentheses",
        examples=['category = "Comedy" and year >= 1990'],
    )
    diversity: float | None = Field(
        None,
        ge=0,
        le=1,
        description="0 = by score alone, 1 = as unlike each other as can be; default by setting",
    )
    explain: bool = Field(False, description="tell which events moved each item, and by how much")


class RecommendationQuery(RankingOptions):
    """Parameters of a ranking for a user."""

    cursor: str | None = Field(None, description="`next` of the page before; nothing for the first page")


class RecommendationRequest(RecommendationQuery):
    """One ranking: of a known user, of an anonymous session, or of a known user plus newest events."""

    user_id: str | None = Field(None, min_length=1, examples=["259"])
    events: tuple[InlineEvent, ...] = Field((), description="oldest first or any order; sorted by timestamp")
    session: str | None = Field(
        None,
        min_length=1,
        description="a name that an anonymous session keeps, so that its experiment arm does",
    )


class RankRequest(RankingOptions):
    """Candidates to be put in order for a known user, an anonymous session, or a known user plus newest events."""

    items: tuple[str, ...] = Field(
        min_length=1, description="ids of the candidates", examples=[["50", "181"]]
    )
    user_id: str | None = Field(None, min_length=1, examples=["259"])
    events: tuple[InlineEvent, ...] = Field((), description="oldest first or any order; sorted by timestamp")
    session: str | None = Field(
        None,
        min_length=1,
        description="a name that an anonymous session keeps, so that its experiment arm does",
    )


class BatchRequest(Request):
    """Several rankings in one forward pass."""

    requests: tuple[RecommendationRequest, ...] = Field(min_length=1)


class Contribution(Answer):
    """What one event of the history did for an item's score."""

    item_id: str | None = Field(description="of the event; null: the catalogue does not know the item")
    title: str
    type: str
    time: str = Field(description="event time, ISO 8601 UTC")
    effect: float = Field(description="score with the event less score without it")
    text: str = Field(description="the same in words")


@dataclass(slots=True)
class RecommendedItem:
    """An item and why it is there."""

    item_id: str
    title: str
    score: Annotated[
        float,
        Field(
            description="model: scale · cosine of user and item, and what rules add; popular: share of recent events"
        ),
    ]
    reasons: list[str]
    propensity: Annotated[
        float | None,
        Field(
            exclude_if=_absent,
            description="probability that exploration shows this item here; absent without exploration",
        ),
    ] = None
    explanation: Annotated[
        list[Contribution] | None,
        Field(exclude_if=_absent, description="events that moved the item most, with explain=true"),
    ] = None


class ModelState(Answer):
    """The model an answer was made with."""

    version: str | None = Field(description="bundle version; null before the first promotion")
    age_s: float | None = Field(description="since the bundle was made, s")
    kind: Literal["trained", "popular"]


class UserState(Answer):
    """The user state an answer was made with."""

    known: bool = Field(description="whether any event of this user has arrived")
    events: int = Field(description="events the ranking looked at, inline ones included")
    partition: int | None = Field(description="Kafka partition of the newest event in the state")
    offset: int | None = Field(description="Kafka offset of the newest event in the state")
    age_ms: float | None = Field(description="since the broker took that event, ms")


class ExperimentState(Answer):
    """The experiment an answer took part in."""

    name: str
    arm: str


class Recommendations(Answer):
    """Ranked items, best first, and what they were made from."""

    user_id: str | None
    items: list[RecommendedItem]
    model: ModelState
    state: UserState
    next: str | None = Field(None, exclude_if=_absent, description="cursor of the next page, if there is one")
    experiment: ExperimentState | None = Field(None, exclude_if=_absent)
    unknown: list[str] | None = Field(
        None,
        exclude_if=_absent,
        description="candidates that are not ranked: not in the catalogue, or filtered",
    )


class BatchAnswer(Answer):
    """Answers in the order of the requests."""

    results: list[Recommendations]


# --- items, users ----------------------------------------------------------------------------------------


class SimilarItem(Answer):
    """A neighbour of an item."""

    item_id: str
    title: str
    similarity: float = Field(description="cosine, -1..1")


class SimilarItems(Answer):
    """The neighbours of an item, nearest first."""

    item_id: str
    title: str
    items: list[SimilarItem]
    model: ModelState


class UserEvent(Answer):
    """An event in a user's state."""

    item_id: str | None = Field(description="null: the catalogue does not know the item (any more)")
    item_hash: str = Field(description="stable 64-bit name of the item, hexadecimal")
    title: str | None
    type: str
    time: str = Field(description="event time, ISO 8601 UTC")


class Sessions(Answer):
    """What a user did in stretches without a pause longer than streaming.state.session_gap_s."""

    count: int
    current_start: str = Field(description="event time at which the newest session began")
    current_events: int
    dwell_s: float = Field(description="time between consecutive events within sessions, summed over all, s")


class Erasure(Answer):
    """Proof that a user was erased."""

    erased_upto: str = Field(
        description="event time: nothing of the user up to here is kept or taken in again"
    )
    requested: str = Field(description="when the broker took the request")
    partition: int
    offset: int = Field(description="of the record that asked for it")
    events: int = Field(description="events of the user's state that went")
    buffered_events: int = Field(description="of those, in windows still open")
    windows: list[str] = Field(description="closed windows whose files were rewritten without the user")


class UserAnswer(Answer):
    """A user's rolling state in words."""

    user_id: str
    total: int = Field(description="events ever applied")
    events: list[UserEvent] = Field(description="the newest ones, newest first")
    decayed_counts: dict[str, dict[str, float]] = Field(
        description="half-life (seconds) → event type → count, as of the newest event (streaming.state.half_lives_s)",
        examples=[{"86400": {"view": 3.5}, "604800": {"view": 9.1}}],
    )
    values: dict[str, float] = Field(description="sum of the events' values, per event type")
    categories: dict[str, int] = Field(description="events per category (streaming.state.categories)")
    sessions: Sessions
    first_seen: str
    last_seen: str
    trust: float = Field(description="0..1: how much this user's events weigh in training")
    quarantined: bool = Field(description="held: nothing of this user is trained on (headrace quarantine)")
    erasures: list[Erasure] = Field(description="earlier lives of this user that were erased")
    state: UserState


# --- events ----------------------------------------------------------------------------------------------


class NewEvent(Request):
    """An event to be published to the stream."""

    user_id: str = Field(min_length=1, examples=["259"])
    item_id: str = Field(min_length=1, examples=["50"])
    type: str = Field(description="one of the setting streaming.event_types", examples=["view"])
    timestamp: EpochMs | None = Field(None, description="epoch ms or ISO 8601; now if absent")
    event_id: str | None = Field(
        None, min_length=1, description="names the event for de-duplication; made if absent"
    )
    value: float | None = Field(None, allow_inf_nan=False)
    context: dict[str, Any] | None = None


class NewEvents(Request):
    """Events to be published; all of them, or none if one does not validate."""

    events: tuple[NewEvent, ...] = Field(min_length=1)


class Acknowledgement(Answer):
    """Where the broker put an event. Its state shows at `GET /v1/users/{user_id}` once offset is reached."""

    event_id: str
    partition: int
    offset: int


class Acknowledgements(Answer):
    """One per event, in order."""

    accepted: list[Acknowledgement]


class ErasureAccepted(Answer):
    """Where the broker put the request; the proof shows at `GET /v1/users/{user_id}` once it is applied."""

    user_id: str
    partition: int
    offset: int


# --- models, operations ----------------------------------------------------------------------------------


class ModelVersion(Answer):
    """A model the learner has made, and what the gate said of it."""

    version: str
    status: str = Field(description="promoted, rejected, candidate or rolled_back")
    current: bool
    reason: str
    created_at: str
    parent: str | None = None
    eval: dict[str, Any]
    lineage: dict[str, Any]


class ModelList(Answer):
    """Every version, newest first."""

    current: str | None
    serving: ModelState = Field(description="what this replica answers with now")
    versions: list[ModelVersion]


class PromoteAnswer(Answer):
    """A promotion by hand; every replica follows within serving.refresh_s."""

    current: str
    previous: str | None


class ScaleRequest(Request):
    """Numbers of actors the pipeline shall run with; what is absent stays."""

    shard_actors: int | None = Field(None, ge=1, le=4096, description="actors that host the logical shards")
    ingestors: int | None = Field(None, ge=1, le=4096, description="actors that read partitions")


class ScaleAnswer(Answer):
    """What the pipeline is changing to; `layout` in `/v1/stats` shows when it has."""

    shard_actors: int
    ingestors: int
    version: int = Field(description="of the layout")


class RecentUsers(Answer):
    """Users whom the newest events are of."""

    users: list[str] = Field(description="newest first")


class History(Answer):
    """How the pipeline did over the last minutes: columns of samples, oldest first."""

    every_s: float = Field(description="about the time between samples, s")
    at: list[float] = Field(description="when each sample was taken, epoch s")
    events_per_s: list[float]
    lag: list[int] = Field(description="records that are not read yet")
    applied: list[int]
    users: list[int]
    windows: list[int] = Field(description="closed ones")
    trained: list[int] = Field(description="models")
    promoted: list[int] = Field(description="models")


class AttackRequest(Request):
    """Fake users to be sent into the stream."""

    kind: Literal["random", "average", "bandwagon", "segment", "love-hate", "reverse-bandwagon"] = Field(
        "bandwagon", description="how they act; see docs/robustness.md"
    )
    size: float = Field(
        0.05, gt=0, le=0.2, description="fake users as a share of the users in the newest windows"
    )
    targets: int = Field(3, ge=1, le=20, description="items they push, drawn from the rarest")
    items: tuple[str, ...] = Field((), max_length=20, description="ids of items to push instead")
    seed: int | None = Field(None, ge=0, lt=2**32, description="of targets, users and ids; any if absent")


class AttackAnswer(Answer):
    """An attack that has begun; `attack` in `/v1/stats` shows what becomes of it."""

    number: int = Field(description="counts the attacks since the supervisor started")


class Health(Answer):
    """Liveness or readiness."""

    status: Literal["ok", "starting"]
    detail: str = ""


class Problem(BaseModel):
    """RFC 9457 problem details; the body of every error."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    instance: str | None = None
    errors: list[dict[str, str]] | None = Field(
        None, description="pointer and detail per field, for status 422"
    )
    erasures: list[Erasure] | None = Field(None, description="the proofs, for status 410")
