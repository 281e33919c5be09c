"""From an event to the answer that it changed, while events stream in.

    python -m tests.bench.serve_events SPEC.json RESULT.json

The whole path: the embedded broker, the ingest and shard actors with their default settings, the `api` application,
and a process that paces other users' events onto the topic. Ten times a second a user of a probe's own takes the
first item of their list, posts a click on it to `POST /v1/events`, and asks for the list again every 10 ms until its
`state` has that event's offset. The latency runs from just before the post to the end of the answer; that answer must
not hold the item any more. Probes begin on schedule whether or not earlier ones are done, so a stall counts against
every probe that falls into it.
"""

import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from services.settings import Settings
from streaming.broker import EmbeddedBroker, free_port
from tests.bench.peers import BenchError
from tests.bench.pipeline import Pipeline, bench_settings, wait_until
from tests.bench.producer import create_topic
from tests.bench.visible import PRODUCER_TIMEOUT_S, UNSEEN_AFTER_S, WARM_UP_S, paced_producer, summary

TOPIC = "bench.serve"
PROBE_EVERY_S = 0.1
ASK_EVERY_S = 0.01
PROBES = 200  # users: none is asked about twice at a time
READY_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class Spec:
    """What to measure: the world, the load, and for how long."""

    world: str
    events_per_s: float
    seconds: float
    users: int


@dataclass
class Seen:
    """What probes saw."""

    latency_s: list[tuple[float, float | None]] = field(default_factory=list)  # (sent at, until seen)
    accepted_s: list[float] = field(default_factory=list)  # until the post was answered
    unchanged: int = 0
    errors: list[str] = field(default_factory=list)


def settings_of(spec: Spec, broker: str, port: int) -> Settings:
    """Default settings but for places."""
    one_each = {"ingestors": 1, "shard_actors": 1}
    settings = bench_settings(broker, TOPIC, Path(spec.world), "kafka-python", one_each)
    return settings.model_copy(update={"serving": settings.serving.model_copy(update={"port": port})})


async def probe(client: httpx.AsyncClient, number: int, sent: float, seen: Seen) -> None:
    """Have one user click, and wait until their list knows."""
    rankings = f"/v1/recommendations/probe-{number % PROBES}"
    try:
        item = (await client.get(rankings)).raise_for_status().json()["items"][0]["item_id"]
        click = {"user_id": f"probe-{number % PROBES}", "item_id": item, "type": "click"}
        started = time.perf_counter()
        answer = (await client.post("/v1/events", json={"events": [click]})).raise_for_status().json()
        seen.accepted_s.append(time.perf_counter() - started)
        accepted = answer["accepted"][0]
        while (waited := time.perf_counter() - started) < UNSEEN_AFTER_S:
            body = (await client.get(rankings)).raise_for_status().json()
            state = body["state"]
            if state["partition"] == accepted["partition"] and state["offset"] >= accepted["offset"]:
                seen.latency_s.append((sent, time.perf_counter() - started))
                seen.unchanged += item in {found["item_id"] for found in body["items"]}
                return
            await asyncio.sleep(ASK_EVERY_S)  # the sampling interval
        seen.latency_s.append((sent, None))
        seen.errors.append(f"not seen within {waited:.0f} s")
    except (httpx.HTTPError, KeyError, IndexError) as error:
        seen.errors.append(repr(error))


async def probes(base: str, seconds: float) -> Seen:
    """Send probes for so long and wait for the last of them."""
    seen, running = Seen(), set()
    limits = httpx.Limits(max_connections=256)
    async with httpx.AsyncClient(base_url=base, timeout=UNSEEN_AFTER_S, limits=limits) as client:
        started = time.perf_counter()
        for number in range(int(seconds / PROBE_EVERY_S)):
            await asyncio.sleep(started + number * PROBE_EVERY_S - time.perf_counter())  # the schedule itself
            running.add(asyncio.create_task(probe(client, number, number * PROBE_EVERY_S, seen)))
        await asyncio.gather(*running)
    return seen


def figures(seen: Seen) -> dict[str, Any]:
    """Percentiles of the probes after the warm-up; those never seen count as slower than all others."""
    found = summary(seen.latency_s, WARM_UP_S)
    unseen_errors = sum(latency is None for _, latency in seen.latency_s)
    return found | {
        "accepted_p50": _ms(seen.accepted_s, 50),
        "accepted_p99": _ms(seen.accepted_s, 99),
        "unchanged": seen.unchanged,
        "errors": len(seen.errors) - unseen_errors,
        "first_errors": seen.errors[:5],
    }


def _ms(seconds: Sequence[float], at: float) -> float | None:
    return round(float(np.percentile(seconds, at)) * 1000, 1) if seconds else None


def measure(spec: Spec) -> dict[str, Any]:
    """Run the pipeline, the API, the load and the probes.

    Raises:
        BenchError: no probe came through; the message holds its first error.
    """
    from ray import serve

    from serving.app import api_application

    port = free_port()
    base = f"http://127.0.0.1:{port}"
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory(prefix="pace-") as folder:
        settings = settings_of(spec, broker.bootstrap_servers, port)
        create_topic(broker.bootstrap_servers, TOPIC)
        with Pipeline(settings) as pipeline:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            api = api_application(settings.data_dir, settings.kafka, settings.streaming, settings.serving)
            serve.run(api, name="api", route_prefix="/")
            wait_until(lambda: _ready(base), 0.2, READY_TIMEOUT_S, lambda: f"{base}/readyz does not say ok")
            result = Path(folder) / "paced.json"
            pace = (broker.bootstrap_servers, TOPIC, spec.events_per_s, spec.seconds, spec.users, result)
            with paced_producer(*pace) as process:
                wait_until(
                    lambda: pipeline.handed_over() > 0,
                    0.1,
                    PRODUCER_TIMEOUT_S,
                    lambda: f"no event arrived: {pipeline.errors()}",
                )
                seen = asyncio.run(probes(base, spec.seconds - 2))
                process.wait(PRODUCER_TIMEOUT_S)
                reached = json.loads(result.read_text())["events_per_s"]
            errors = pipeline.errors()
    if not seen.latency_s:
        raise BenchError(f"no event was seen in an answer: {seen.errors[:3]}, {errors}")
    load = {"events_per_s": reached, "wanted_events_per_s": spec.events_per_s, "pipeline_errors": errors}
    return figures(seen) | load


def _ready(base: str) -> bool:
    try:
        return httpx.get(f"{base}/readyz", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def main() -> None:
    """Measure what the file describes."""
    spec_file, result = sys.argv[1:]
    measured = measure(Spec(**json.loads(Path(spec_file).read_text())))
    Path(result).write_text(json.dumps(measured))


if __name__ == "__main__":
    main()
