"""The routes, grouped by what they are about; each group is a function of what it needs.

Rankings are computed in the event loop, not in a thread: one takes a millisecond or two, and handing it to
a thread and back costs a part of that and gains nothing while the interpreter runs one thread at a time.
What waits (broker, supervisor, files) goes to a thread or is awaited, with a time-out.

Handlers return the answer models as they are: FastAPI renders those with pydantic in one pass, which a
response rendered by hand beat by 6 µs only.
"""

import asyncio
import time
from typing import Annotated

from fastapi import APIRouter, Header, Path, Query, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving import metrics, request_id
from serving.ask import Ask
from serving.batching import MicroBatcher
from serving.engine import Recommender, body_of
from serving.errors import UnavailableError
from serving.models import (
    Acknowledgements,
    BatchAnswer,
    BatchRequest,
    ErasureAccepted,
    Health,
    ModelList,
    NewEvents,
    PromoteAnswer,
    RankRequest,
    RecommendationQuery,
    Recommendations,
    ScaleAnswer,
    ScaleRequest,
    SimilarItems,
    UserAnswer,
)
from serving.ports import EventSink, Pipeline
from serving.problems import describe
from serving.ranking import Answered
from serving.security.routes import PUBLIC, GuardedRoute, require
from streaming import exposition
from streaming.meters import folder, since

_THREAD_FROM = 16  # a batch this large takes long enough to leave the event loop to others

UserId = Annotated[str, Path(description="any UTF-8 text, percent-encoded", examples=["259"])]
ItemId = Annotated[str, Path(description="any UTF-8 text, percent-encoded", examples=["50"])]

READ, WRITE, ADMIN = require("read"), require("write"), require("admin")
JSON = "application/json"


def rendered(answered: Answered) -> Response:
    """A ranking as HTTP: 304 where the caller has it already."""
    headers = {"ETag": answered.tag} if answered.tag else None
    if answered.body is None:
        return Response(status_code=304, headers=headers)
    return Response(answered.body.__pydantic_serializer__.to_json(answered.body), 200, headers, JSON)


def recommendation_routes(recommender: Recommender, batcher: MicroBatcher) -> APIRouter:
    """Rankings for users, sessions and items."""
    router = APIRouter(tags=["recommendations"], route_class=GuardedRoute)
    settings = recommender.settings

    async def ranked(ask: Ask) -> Answered:
        recommender.limits.check_ask(ask)
        if ask.explain:  # dozens of forward passes: not in the event loop
            [answered] = await asyncio.to_thread(recommender.answer, [ask])
            if not isinstance(answered, Answered):
                raise answered
            return answered
        return await batcher.ask(ask)

    @router.get(
        "/v1/recommendations/{user_id:path}",
        summary="Rank items for a user",
        responses=describe(409, 422) | {304: {"description": "what the caller has is still so"}},
        response_model=Recommendations,
        openapi_extra=READ,
    )
    async def recommend(
        user_id: UserId,
        query: Annotated[RecommendationQuery, Query()],
        if_none_match: Annotated[
            str | None, Header(description="`ETag` of an answer that the caller has")
        ] = None,
    ) -> Response:
        """The best items for this user now, each with the reason it is there.

        `model` and `state` say what the answer was made from: the bundle's version and age, and the offset
        and age of the newest event of this user that it knows. A user nobody has seen gets what is popular.
        `next`, if there is one, asks for the next page of the same list; a list that has changed in between
        (a new event, model or catalogue) answers 409.
        """
        ask = Ask.by_query(user_id, query, request_id.current(), if_none_match)
        return rendered(await ranked(ask))

    @router.post(
        "/v1/recommendations",
        summary="Rank items for several users or sessions at once",
        responses=describe(409, 422),
        openapi_extra=READ,
    )
    async def recommend_batch(body: BatchRequest) -> BatchAnswer:
        """Each request names a `user_id`, inline `events`, or both.

        Events alone are an anonymous session: it is ranked as a user with exactly those events would be, and
        nothing is stored. With a `user_id`, inline events count as the user's newest, ahead of the stream.
        """
        asks = recommender.limits.asks(body.requests, request_id.current())
        if len(asks) < _THREAD_FROM and not any(ask.explain for ask in asks):
            answers = recommender.answer(asks)
        else:
            answers = await asyncio.to_thread(recommender.answer, asks)
        return BatchAnswer(results=[body_of(answered) for answered in answers])

    @router.post(
        "/v1/rank",
        summary="Put candidates in order",
        responses=describe(422),
        response_model=Recommendations,
        openapi_extra=READ,
    )
    async def rank(body: RankRequest) -> Response:
        """Order items that you have chosen, for a user or an anonymous session, seen ones among them.

        Items that are not in the catalogue, have no vector yet or do not meet the filter are listed as `unknown`.
        """
        return rendered(await ranked(Ask.by_candidates(body, request_id.current())))

    @router.get(
        "/v1/items/{item_id:path}/similar",
        summary="Find items like this one",
        responses=describe(404, 422),
        openapi_extra=READ,
    )
    async def similar(
        item_id: ItemId,
        k: Annotated[int, Query(ge=1, le=settings.k_max, description="items wanted")] = settings.k_default,
    ) -> SimilarItems:
        """Nearest neighbours by the model's item vectors; by text alone before there is a model."""
        recommender.limits.check_id(item_id, "path/item_id")
        return recommender.similar(item_id, k)

    return router


def user_routes(recommender: Recommender, sink: EventSink) -> APIRouter:
    """Events in, and the state they made."""
    router = APIRouter(tags=["users and events"], route_class=GuardedRoute)

    @router.post(
        "/v1/events",
        status_code=202,
        summary="Publish events to the stream",
        responses=describe(422, 503),
        openapi_extra=WRITE,
    )
    async def publish(body: NewEvents) -> Acknowledgements:
        """All events are validated first; if one is wrong, none is published and the answer names the field.

        The answer comes when the broker has stored them, with partition and offset of each. Rankings follow
        within the stream's latency; `state.offset` there says when.
        """
        recommender.limits.check_events(body.events)
        accepted = await sink.produce(body.events)
        metrics.PRODUCED.inc(len(accepted))
        return Acknowledgements(accepted=accepted)

    @router.delete(
        "/v1/users/{user_id:path}",
        status_code=202,
        summary="Forget a user",
        responses=describe(422, 503),
        openapi_extra=ADMIN,
    )
    async def forget(user_id: UserId) -> ErasureAccepted:
        """Erase a user's state, buffered events, and rows in closed windows; later windows are free of them.

        The request goes through the stream, in order with the user's events: what comes before it goes, and what
        comes late with an older event time is dropped. `GET /v1/users/{user_id}` then answers 410 with the proof.
        """
        recommender.limits.check_id(user_id, "path/user_id")
        done = await sink.forget(user_id)
        return ErasureAccepted(user_id=user_id, partition=done.partition, offset=done.offset)

    @router.get(
        "/v1/users/{user_id:path}",
        summary="Look at a user's state",
        responses=describe(404, 410, 422),
        openapi_extra=READ,
    )
    async def user(user_id: UserId) -> UserAnswer:
        """The newest events, newest first, and the counts kept beside them."""
        recommender.limits.check_id(user_id, "path/user_id")
        return recommender.user(user_id)

    return router


def model_routes(recommender: Recommender) -> APIRouter:
    """What the learner has made, and which of it serves."""
    router = APIRouter(tags=["models"], route_class=GuardedRoute)

    @router.get("/v1/models", summary="List model versions", openapi_extra=READ)
    async def models() -> ModelList:
        """Every version, newest first, with the gate's verdict and all numbers it looked at."""
        return await asyncio.to_thread(recommender.models)

    @router.post(
        "/v1/models/{version}/promote",
        summary="Serve another version",
        responses=describe(404, 422),
        openapi_extra=ADMIN,
    )
    async def promote(
        version: Annotated[str, Path(description="as listed by GET /v1/models", max_length=200)],
        reason: Annotated[
            str, Query(max_length=500, description="kept in the registry's history")
        ] = "by hand",
    ) -> PromoteAnswer:
        """Roll back or forward by hand. Replicas follow within `serving.refresh_s`; no request fails."""
        return await asyncio.to_thread(recommender.promote, version, reason)

    return router


def operation_routes(
    recommender: Recommender, pipeline: Pipeline, window: metrics.RequestWindow
) -> APIRouter:
    """What an operator, a probe or a scraper asks."""
    router = APIRouter(tags=["operations"], route_class=GuardedRoute)

    @router.get("/v1/stats", summary="How the whole system is doing", openapi_extra=READ)
    async def stats() -> dict[str, object]:
        """The supervisor's status with this replica's own numbers.

        Where the supervisor does not answer in time, `pipeline` is null and `note` says why.
        """
        own: dict[str, object] = {
            "request_ms": window.summary(),
            "model": recommender.model_state().model_dump(),
            "items_servable": recommender.servable(),
            "experiments": recommender.live.describe(),
            "event_types": recommender.streaming.event_types,
            "simulations": recommender.settings.simulations,
        }
        try:
            return {"pipeline": "reachable"} | await pipeline.status() | own
        except UnavailableError as error:
            return {"pipeline": None, "note": str(error)} | own

    @router.post(
        "/v1/pipeline/scale",
        status_code=202,
        summary="Change the numbers of actors",
        responses=describe(422, 503),
        openapi_extra=ADMIN,
    )
    async def scale(body: ScaleRequest) -> ScaleAnswer:
        """Move logical shards to more or fewer actors while the stream goes on; nothing is lost or doubled."""
        return ScaleAnswer(**await pipeline.scale(body.shard_actors, body.ingestors))

    @router.get("/healthz", summary="Is the process alive?", openapi_extra=PUBLIC)
    async def health() -> Health:
        """200 as long as the event loop turns."""
        return Health(status="ok")

    @router.get("/readyz", summary="Can it answer?", responses=describe(503), openapi_extra=PUBLIC)
    async def ready() -> Health:
        """200 once there is an item to recommend, with a model or without."""
        items = recommender.servable()
        if not items:
            raise UnavailableError("no item can be recommended yet: publish items to the items topic")
        return Health(
            status="ok", detail=f"{items} items, model {recommender.model_state().version or 'none yet'}"
        )

    @router.get(
        "/metrics",
        summary="Prometheus metrics",
        response_class=Response,
        openapi_extra=PUBLIC,
    )
    async def prometheus() -> Response:
        """Text exposition format: of all processes on this node that share their metrics, else of this one."""
        age_s = recommender.model_state().age_s
        since(metrics.MODEL_AGE_SECONDS, None if age_s is None else time.time() - age_s)
        shared = folder()
        text = generate_latest() if shared is None else await asyncio.to_thread(exposition.text, shared)
        return Response(text, media_type=CONTENT_TYPE_LATEST)

    return router
