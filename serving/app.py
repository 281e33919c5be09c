"""The HTTP application, plain and as a Ray Serve deployment.

Both are the same FastAPI app, built by `build_app`. Under Serve it is built inside the replica after its
constructor has run (`__serve_build_asgi_app__`), so nothing of it is ever pickled, and requests go from
HAProxy to it with no proxy of Serve's in between.
"""

import asyncio
import functools
import importlib.metadata
import time
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from prometheus_client import Histogram
from ray import serve

from serving import envelope, request_id
from serving.application import Application
from serving.batching import MicroBatcher
from serving.config import ServingSettings
from serving.engine import Recommender
from serving.exposure import exposure
from serving.fast_lane import FastLane
from serving.impressions import ImpressionLog
from serving.metrics import REQUEST_SECONDS, RequestWindow
from serving.page.routes import page_routes
from serving.ports import EventSink, KafkaSink, Pipeline, ServePipeline
from serving.request_traces import Traced
from serving.routes import model_routes, operation_routes, recommendation_routes, user_routes
from serving.security.guard import Guard
from serving.watch_routes import watch_routes
from streaming import logs
from streaming.config import KafkaSettings, StreamingSettings
from streaming.logs import LogSettings

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_DESCRIPTION = """
Recommendations from a live stream of user events. Try it in this order:

1. `GET /v1/recommendations/{user_id}` — the best items for a user now, with a reason for each.
2. `POST /v1/events` — tell what the user does next; the next ranking, within a second, has it in its state.
3. `GET /v1/users/{user_id}` — the state the ranking was made from.
4. `GET /v1/models` — every model the learner has made, which one serves, and why the others do not.

Errors are [RFC 9457](https://www.rfc-editor.org/rfc/rfc9457) problem details;
`errors[].pointer` names the field.
"""


class Measured:
    """Pure ASGI middleware: duration and status of each request, by route template.

    Args:
        app: the application inside.
        window: gets the durations of rankings, for `/v1/stats`.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]], window: RequestWindow) -> None:
        self._app, self._window = app, window

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or lifespan."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500
        started = time.perf_counter()

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            duration_s = time.perf_counter() - started
            route = getattr(scope.get("route"), "path_format", "unmatched")  # a template: ids are no labels
            _histogram(route, scope["method"], status).observe(duration_s)
            if route.startswith("/v1/recommendations"):
                self._window.add(duration_s, status)


@functools.lru_cache(maxsize=1024)  # finding the labels costs more than counting
def _histogram(route: str, method: str, status: int) -> Histogram:
    return REQUEST_SECONDS.labels(route, method, str(status))


def build_app(
    recommender: Recommender, sink: EventSink, pipeline: Pipeline, name_answers: bool = True
) -> Application:
    """Build the application around what it needs; runs under any ASGI server.

    Args:
        recommender: ranks.
        sink: takes events for the stream.
        pipeline: tells how the streaming side is doing.
        name_answers: put the request's id into the answer; False under Ray Serve, which does so itself.
    """
    settings = recommender.settings
    window = RequestWindow(settings.stats_window)
    batcher = MicroBatcher(recommender.answer, settings.micro_batch_max, settings.micro_batch_wait_ms / 1000)
    guard = Guard(settings.security, settings.host, settings.admin_api_key, settings.admin_open)
    inside: FastAPI = FastAPIOffline(
        title="Headrace",
        summary="A streaming recommender that keeps learning and refuses to be manipulated.",
        description=_DESCRIPTION,
        version=importlib.metadata.version("headrace"),
        license_info={"name": "Apache-2.0", "identifier": "Apache-2.0"},
    )
    documentation = list(inside.router.routes)
    inside.include_router(recommendation_routes(recommender, batcher))
    inside.include_router(user_routes(recommender, sink))
    inside.include_router(model_routes(recommender))
    inside.include_router(operation_routes(recommender, pipeline, window))
    inside.include_router(watch_routes(pipeline, settings))
    # Serve looks through the routes in order for the name of each request: rankings first, pages for people last
    routes = [route for route in inside.router.routes if route not in documentation]
    inside.router.routes[:] = routes + documentation
    if settings.page:
        inside.include_router(page_routes())
    app = Application(inside)
    # inside out
    app.surround(FastLane, batcher=batcher, limits=recommender.limits, guard=guard)
    envelope.install(app, guard, settings.security, name_answers)
    app.surround(Measured, window=window)
    if recommender.tracer is not None:
        app.surround(Traced, tracer=recommender.tracer)
    return app


class ApiReplica:
    """One replica of the API: a recommender that follows the registry, and the app around it."""

    def __init__(
        self,
        data_dir: Path,
        kafka: KafkaSettings,
        streaming: StreamingSettings,
        serving: ServingSettings,
        log: LogSettings,
    ) -> None:
        logs.configure(log, "api", request_id=request_id.current)
        self._recommender = Recommender(data_dir, streaming, serving).start()
        if serving.impressions.enabled:
            self._recommender.log_to(ImpressionLog(kafka, serving.impressions, self._recommender.clock_ms))
        self._sink = KafkaSink(
            kafka, streaming.sources[0], serving.request_timeout_s, self._recommender.clock_ms
        )
        self._pipeline = ServePipeline(serving.stats_timeout_s)

    def __serve_build_asgi_app__(self) -> Application:
        """Called by Serve in the replica, after the constructor."""
        return build_app(self._recommender, self._sink, self._pipeline, name_answers=False)

    async def exposure(self, users: list[str], targets: list[str]) -> float:
        """Called by the supervisor; see `serving.exposure`."""
        return await asyncio.to_thread(exposure, self._recommender, users, targets)

    def check_health(self) -> None:
        """Called by Serve; a replica that no longer follows the registry is replaced.

        Raises:
            RuntimeError: the refresher is dead.
        """
        if not self._recommender.refresher.alive():
            raise RuntimeError("the thread that follows the registry and the catalogue has died")

    def __del__(self) -> None:
        """Called by Serve when the replica is stopped, after its last request."""
        if hasattr(self, "_recommender"):  # the constructor may have failed
            self._recommender.stop()
        self._sink.close()


Api = serve.deployment(name="Api")(serve.ingress()(ApiReplica))


def api_application(
    data_dir: Path,
    kafka: KafkaSettings,
    streaming: StreamingSettings,
    serving: ServingSettings,
    log: LogSettings | None = None,
) -> serve.Application:
    """Make the `api` application, ready for `serve.run(…, name="api", route_prefix="/")`."""
    replicas = serving.replicas
    scaling = {
        "min_replicas": replicas.minimum,
        "max_replicas": replicas.maximum,
        "initial_replicas": max(1, replicas.minimum),
        "target_ongoing_requests": replicas.target_ongoing_requests,
        "upscale_delay_s": replicas.upscale_delay_s,
        "downscale_delay_s": replicas.downscale_delay_s,
    }
    threads = {"OMP_NUM_THREADS": str(serving.threads)}  # before torch and BLAS start theirs
    deployment = Api.options(
        autoscaling_config=scaling,
        max_ongoing_requests=replicas.max_ongoing_requests,
        ray_actor_options={"num_cpus": replicas.cpus, "runtime_env": {"env_vars": threads}},
        health_check_period_s=10,
        health_check_timeout_s=30,
        graceful_shutdown_timeout_s=10,
        # Serve's own lines would hold paths, that is ids of users; at "INFO" it still makes one for each request
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )
    return deployment.bind(data_dir, kafka, streaming, serving, log or LogSettings())
