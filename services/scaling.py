"""Asks a running Headrace for other numbers of actors, and waits until it has them."""

import time
from typing import Any

import httpx

from services.client import open_api
from services.errors import ApiError
from services.settings import Settings

_POLL_S = 0.2
_REQUEST_TIMEOUT_S = 15.0


def change_scale(
    settings: Settings,
    url: str | None,
    key: str | None,
    shard_actors: int | None,
    ingestors: int | None,
    timeout_s: float,
) -> tuple[tuple[int, int], tuple[int, int], float]:
    """Change the numbers of actors and wait until the layout is what was asked for.

    Args:
        url, key: see `services.client.open_api`.

    Returns:
        (shard actors, ingestors) before and after, and the seconds it took.

    Raises:
        ApiError: the API cannot be reached, or refused; the message holds its reason.
        TimeoutError: it did not settle in time.
    """
    with open_api(settings, url, key, _REQUEST_TIMEOUT_S) as http:
        before = _layout(http)
        started = time.monotonic()
        wanted = {"shard_actors": shard_actors, "ingestors": ingestors}
        body = {name: number for name, number in wanted.items() if number is not None}
        asked = _answer(http, "POST", "/v1/pipeline/scale", json=body)
        while True:
            now = _layout(http)
            reached = now["shard_actors"] == asked["shard_actors"] and now["settled"]
            if reached and (now["version"] >= asked["version"] or now["version"] == before["version"]):
                break
            if time.monotonic() - started > timeout_s:
                raise TimeoutError(
                    f"the layout is {now} after {timeout_s:.0f} s; see `problems` in {http.base_url}/v1/stats"
                )
            time.sleep(_POLL_S)
    after = now["shard_actors"], now["ingestors"]
    return (before["shard_actors"], before["ingestors"]), after, time.monotonic() - started


def _layout(http: httpx.Client) -> dict[str, Any]:
    stats = _answer(http, "GET", "/v1/stats")
    if not stats.get("layout"):
        raise ApiError(
            f"the pipeline is not up yet: {stats.get('note') or stats.get('phase')}; try again in a moment"
        )
    return dict(stats["layout"])


def _answer(http: httpx.Client, method: str, path: str, **request: Any) -> dict[str, Any]:
    try:
        answer = http.request(method, path, **request)
    except httpx.HTTPError as error:
        raise ApiError(
            f"cannot reach the API at {http.base_url}: {error}; is `headrace up` running? See --url"
        ) from error
    if answer.is_error:
        raise ApiError(f"{method} {path}: {answer.status_code} {answer.json().get('detail', answer.text)}")
    return dict(answer.json())
