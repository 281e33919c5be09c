"""The end of a replay: wait until every event is accounted for, then write down what was measured."""

import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from services.client import ApiClient
from services.errors import ApiError

if TYPE_CHECKING:
    from services.replay import Replay

Advance = Callable[[int, int], None]


def accounted(stats: dict[str, Any]) -> int:
    """Events that the pipeline has put somewhere: applied, dropped as duplicate, or dead-lettered."""
    events = stats["events"]
    return int(events["applied"]) + int(events["duplicates"]) + int(events["dead_lettered"])


def settle(
    client: ApiClient, produced: int, timeout_s: float = 30.0, advance: Advance = lambda done, total: None
) -> tuple[bool, dict[str, Any]]:
    """Poll `/v1/stats` until all produced events are accounted for.

    Returns:
        Whether they were in time, and the newest statistics; a failed request is asked again.

    Raises:
        ApiError: there was not one answer with the pipeline's figures within the time-out.
    """
    deadline = time.monotonic() + timeout_s
    stats: dict[str, Any] | None = None
    pause_s = 0.05
    while True:
        try:
            newest = client.stats()
            if "events" not in newest:  # the pipeline did not answer the API
                raise ApiError(f"GET /v1/stats: no figures of the pipeline: {newest.get('note')}")
            stats = newest
            advance(min(accounted(stats), produced), produced)
            if accounted(stats) >= produced:
                return True, stats
        except ApiError:
            if stats is None and time.monotonic() > deadline:
                raise
        if time.monotonic() > deadline and stats is not None:
            return False, stats
        time.sleep(pause_s)  # a poll interval
        pause_s = min(pause_s * 1.5, 0.5)


def make_report(replay: "Replay", stats: dict[str, Any], settled: bool) -> dict[str, Any]:
    """Put the measurements of a replay and the statistics of the system together.

    `events` except `produced`, `windows` and `models` are what the system says of itself; the rest is what
    the replay saw from outside. `seconds_to_first_recommendation` ends with the first answer by a trained
    model.
    """
    now = replay.snapshot()
    score = now.prequential
    events = stats["events"]
    k = replay.knobs.k
    return {
        "events": {
            "produced": now.produced,
            "applied": events["applied"],
            "duplicates": events["duplicates"],
            "dead_lettered": events["dead_lettered"],
            "late": events.get("late"),
            "settled": settled,
        },
        "windows": stats["windows"],
        "models": {name: stats["models"][name] for name in ("trained", "promoted", "rejected")},
        "prequential": {
            "requests": score.requests,
            f"hit_rate@{k}": score.hit_rate,
            f"ndcg@{k}": score.ndcg,
            f"popularity_hit_rate@{k}": score.popularity_hit_rate,
            f"popularity_ndcg@{k}": score.popularity_ndcg,
            "sample_rate": now.sample_rate,
            "exclude_seen": now.exclude_seen,
            "untrained": score.untrained,
            "failed": score.failed,
            "skipped": score.skipped,
        },
        "request_ms": {**asdict(now.request_ms), "errors": now.errors, "last_error": now.last_error},
        "freshness_ms": asdict(now.freshness),
        "seconds_to_first_recommendation": replay.seconds_to_first_recommendation,
        "dataset": {
            "name": replay.dataset.name,
            "events": len(replay.dataset),
            "items": replay.dataset.items.num_rows,
            "repeat_share": round(replay.repeat_share, 4),
        },
        "rate_per_s": replay.knobs.rate,
        "learner": stats.get("learner"),
        "machine": {
            "cpus": os.cpu_count(),
            "system": f"{platform.system()} {platform.machine()}",
            "python": platform.python_version(),
        },
    }


def write_report(report: dict[str, Any], path: Path) -> None:
    """Write a report as JSON, in one step."""
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with os.fdopen(handle, "w", encoding="utf-8") as out:
        json.dump(report, out, indent=2)
        out.write("\n")
    Path(scratch).chmod(0o644)
    Path(scratch).replace(path)
