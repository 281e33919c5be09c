"""The two Serve applications that are the whole product: `pipeline` and `api`.

`pipeline` and `api` are application builders for a `serveConfigV2` (they take `{"settings": PATH}`), so that one
KubeRay RayService is the deployment; `run` starts the same two in this process's Ray.
"""

import time
from pathlib import Path
from typing import Any

from ray import serve

from services.settings import Settings, load_settings
from services.supervisor import Supervisor
from serving.app import api_application


def pipeline_application(settings: Settings) -> serve.Application:
    """The pipeline: one Supervisor replica, no HTTP route."""
    deployment = serve.deployment(
        name="Supervisor",
        num_replicas=1,
        max_ongoing_requests=64,
        ray_actor_options={"num_cpus": 0.1},
        graceful_shutdown_timeout_s=5,
        logging_config={"encoding": settings.log.format.upper()},  # of Serve's own lines
    )(Supervisor)
    return deployment.bind(settings)


def pipeline(args: dict[str, Any]) -> serve.Application:
    """Application builder; `args["settings"]` is the path of the TOML file."""
    return pipeline_application(_settings(args))


def api(args: dict[str, Any]) -> serve.Application:
    """Application builder; `args["settings"]` is the path of the TOML file."""
    settings = _settings(args)
    return api_application(
        settings.data_dir, settings.kafka, settings.streaming, settings.serving, settings.log
    )


def run(settings: Settings) -> str:
    """Start both applications in the running Ray; returns the base URL of the API."""
    serving = settings.serving
    serve.start(http_options={"host": serving.host, "port": serving.port})
    serve.run(pipeline_application(settings), name="pipeline", route_prefix=None)
    application = api_application(
        settings.data_dir, settings.kafka, settings.streaming, serving, settings.log
    )
    serve.run(application, name="api", route_prefix="/")
    host = "127.0.0.1" if serving.host == "0.0.0.0" else serving.host
    return f"http://{host}:{serving.port}"


def wait_until(check: Any, timeout_s: float, what: str, poll_s: float = 0.2) -> None:
    """Poll until `check()` is true.

    Raises:
        TimeoutError: it did not become true in time.
    """
    deadline = time.monotonic() + timeout_s
    while not check():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not happen within {timeout_s:.0f} s")
        time.sleep(poll_s)


def _settings(args: dict[str, Any]) -> Settings:
    path = args.get("settings")
    return load_settings(Path(path) if path else None)
