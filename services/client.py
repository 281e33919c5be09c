"""HTTP clients of the API: one for the commands, and one for the replay, which keeps every latency.

A replay makes tens of requests a second for minutes, so keeping each latency (8 bytes) is cheap and gives
exact percentiles; a histogram would have to guess inside its buckets.
"""

import threading
import time
from array import array
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np

from services.errors import ApiError
from services.settings import Settings

__all__ = ["Answer", "ApiClient", "ApiError", "Percentiles", "Values", "base_url", "open_api"]

_STATS_TIMEOUT_S = 10.0  # it waits for the pipeline's actors


def base_url(settings: Settings) -> str:
    """Where the API of these settings is, as seen from its own machine."""
    host = "127.0.0.1" if settings.serving.host == "0.0.0.0" else settings.serving.host
    return f"http://{host}:{settings.serving.port}"


def open_api(
    settings: Settings, url: str | None = None, key: str | None = None, timeout_s: float = _STATS_TIMEOUT_S
) -> httpx.Client:
    """A connection of a command to the running Headrace.

    Args:
        url: where its API is; None: as the settings say.
        key: what the caller shows; None: `serving.admin_api_key`, where that is set. Keys that the settings name by
            their hash only have to be given.
        timeout_s: longest wait for the next sign of life.
    """
    admin = settings.serving.admin_api_key
    shown = key or (admin.get_secret_value() if admin is not None else None)
    headers = {"X-API-Key": shown} if shown else {}
    return httpx.Client(
        base_url=url or base_url(settings), headers=headers, timeout=timeout_s, trust_env=False
    )


@dataclass(frozen=True)
class Percentiles:
    """Exact percentiles of values in milliseconds; None where there are no values."""

    p50: float | None
    p99: float | None
    count: int


class Values:
    """A growing list of milliseconds that several threads append to."""

    def __init__(self) -> None:
        self._values = array("d")
        self._lock = threading.Lock()

    def add(self, value_ms: float) -> None:
        """Append one value."""
        with self._lock:
            self._values.append(value_ms)

    def percentiles(self) -> Percentiles:
        """Percentiles over all values so far."""
        with self._lock:
            values = np.array(self._values)
        if not len(values):
            return Percentiles(None, None, 0)
        p50, p99 = np.percentile(values, [50, 99])
        return Percentiles(round(float(p50), 3), round(float(p99), 3), len(values))


@dataclass(frozen=True)
class Answer:
    """What the replay needs of one recommendation."""

    items: list[str]  # best first
    trained: bool  # answered by a trained model, not by popularity
    version: str | None
    partition: int | None  # of the newest event in the user's state
    offset: int | None
    received_at: float  # time.monotonic(), s


class ApiClient:
    """Asks for recommendations and statistics; may be used by several threads at once.

    Latencies and errors cover recommendation requests only: a statistics request walks over all actors, and
    the view makes one every moment, also before the system is up. It raises, but is not counted.

    Args:
        timeout_s: longest wait of a recommendation request for the next sign of life (connect, read, write).
        connections: connections kept open at most.
    """

    def __init__(self, base_url: str, timeout_s: float = 2.0, connections: int = 16) -> None:
        self.base_url = base_url.rstrip("/")
        self._timeout_s = timeout_s
        limits = httpx.Limits(max_connections=connections, max_keepalive_connections=connections)
        self._http = httpx.Client(base_url=self.base_url, timeout=timeout_s, limits=limits, trust_env=False)
        self._lock = threading.Lock()
        self._errors = 0
        self._last_error: str | None = None
        self._first_trained_at: float | None = None
        self.latencies = Values()

    @property
    def errors(self) -> int:
        """Recommendation requests that failed so far."""
        return self._errors

    @property
    def last_error(self) -> str | None:
        """The newest failure in words."""
        return self._last_error

    @property
    def first_trained_at(self) -> float | None:
        """When the first answer by a trained model came (`time.monotonic()`, s)."""
        return self._first_trained_at

    def recommend(self, user_id: str, k: int = 10, exclude_seen: bool = True) -> Answer:
        """Ask for a user's top k.

        Raises:
            ApiError: no answer in time, or not a 200 with the expected fields. It is counted.
        """
        path = f"/v1/recommendations/{quote(user_id, safe='')}"
        started = time.perf_counter()
        try:
            body = self._get(path, {"k": k, "exclude_seen": str(exclude_seen).lower()})
        except ApiError as error:
            self._count(error)
            raise
        self.latencies.add((time.perf_counter() - started) * 1000.0)
        try:
            answer = Answer(
                items=[item["item_id"] for item in body["items"]],
                trained=body["model"]["kind"] == "trained",
                version=body["model"]["version"],
                partition=body["state"]["partition"],
                offset=body["state"]["offset"],
                received_at=time.monotonic(),
            )
        except (KeyError, TypeError) as error:
            failed = ApiError(f"GET {path}: unexpected body, {error!r} in {str(body)[:200]}")
            self._count(failed)
            raise failed from error
        if answer.trained and self._first_trained_at is None:
            self._first_trained_at = answer.received_at
        return answer

    def stats(self) -> dict[str, Any]:
        """`GET /v1/stats`.

        Raises:
            ApiError: as for `recommend`, but not counted.
        """
        return self._get("/v1/stats", {}, _STATS_TIMEOUT_S)

    def models(self) -> list[dict[str, Any]]:
        """`GET /v1/models`: the versions, newest first.

        Raises:
            ApiError: as for `recommend`, but not counted.
        """
        versions = self._get("/v1/models", {}, _STATS_TIMEOUT_S).get("versions")
        if not isinstance(versions, list):
            raise ApiError(f"GET /v1/models: expected a list `versions`, got {str(versions)[:200]}")
        return versions

    def alive(self) -> bool:
        """Whether `/healthz` says yes; a refusal or no answer at all is no error here."""
        return self._says_yes("/healthz")

    def ready(self) -> bool:
        """Whether `/readyz` says yes: it can recommend something."""
        return self._says_yes("/readyz")

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _says_yes(self, path: str) -> bool:
        try:
            return self._http.get(path).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _get(self, path: str, params: dict[str, str | int], timeout_s: float | None = None) -> dict[str, Any]:
        try:
            response = self._http.get(path, params=params, timeout=timeout_s or self._timeout_s)
            if response.status_code != httpx.codes.OK:
                raise ApiError(f"GET {path}: {response.status_code} {response.text[:200]}")
            body = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise ApiError(f"GET {path}: {error or type(error).__name__}") from error
        if not isinstance(body, dict):
            raise ApiError(f"GET {path}: expected a JSON object, got {str(body)[:200]}")
        return body

    def _count(self, error: ApiError) -> None:
        with self._lock:
            self._errors += 1
            self._last_error = str(error)
