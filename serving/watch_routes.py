"""What the page asks beside the rest of the API: the last minutes, users to look at, attacks for demonstrations."""

from typing import Annotated

from fastapi import APIRouter, Query

from serving.config import ServingSettings
from serving.errors import ForbiddenError
from serving.models import AttackAnswer, AttackRequest, History, RecentUsers
from serving.ports import Pipeline
from serving.problems import describe
from serving.security.routes import GuardedRoute, require

_USERS = 20  # named where nothing is said


def watch_routes(pipeline: Pipeline, settings: ServingSettings) -> APIRouter:
    """Routes that only pass on what the supervisor says."""
    router = APIRouter(route_class=GuardedRoute)

    @router.get(
        "/v1/stats/history",
        tags=["operations"],
        summary="How the pipeline did over the last minutes",
        responses=describe(503),
        openapi_extra=require("read"),
    )
    async def history() -> History:
        """Rate, lag and counts of the last five minutes at most, since the supervisor started."""
        return History(**await pipeline.history())

    @router.get(
        "/v1/users",
        tags=["users and events"],
        summary="Name some users",
        responses=describe(422, 503),
        openapi_extra=require("read"),
    )
    async def users(
        limit: Annotated[int, Query(ge=1, le=200, description="at most so many")] = _USERS,
    ) -> RecentUsers:
        """Users whom the newest events in the stream are of; some seconds old, and none at the very first request."""
        return RecentUsers(users=await pipeline.recent_users(limit))

    @router.post(
        "/v1/attacks",
        status_code=202,
        tags=["operations"],
        summary="Send fake users, to see what becomes of them",
        responses=describe(403, 409, 422, 503),
        openapi_extra=require("admin"),
    )
    async def attack(body: AttackRequest) -> AttackAnswer:
        """A shilling attack on this very system, as `headrace attack stream` makes one; `/v1/stats` reports on it.

        The fake users' events are real ones: they stay in the stream and in the state. Off unless the setting
        `serving.simulations` is true. One at a time; a second is answered 409.
        """
        if not settings.simulations:
            raise ForbiddenError(
                "simulated attacks are off: their events go into the real stream. On a system that is for "
                "demonstrations, set serving.simulations = true"
            )
        return AttackAnswer(number=await pipeline.attack(body.model_dump()))

    return router
