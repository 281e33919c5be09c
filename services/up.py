"""`headrace up`: the two applications on this machine, against a broker of the user's own."""

import threading
from typing import Any

from rich.console import Console

from services.client import ApiClient, ApiError
from services.settings import Settings

_READY_TIMEOUT_S = 120.0
_REPORT_EVERY_S = 10.0


def run_until_stopped(settings: Settings, console: Console, halt: threading.Event | None = None) -> None:
    """Start everything, print a line now and then, and stop it all on Ctrl-C (or when `halt` is set).

    Raises:
        BrokerError: the broker cannot be reached.
        TimeoutError: the API did not come up.
    """
    from services.applications import run, wait_until
    from services.local_ray import start_ray, stop_ray
    from streaming.kafka import ensure_topics

    stop = halt or threading.Event()
    ensure_topics(
        settings.kafka, [source.topic for source in settings.streaming.sources]
    )  # fails here, clearly, where the broker cannot be reached
    console.print(f"Kafka at {settings.kafka.bootstrap_servers}: topics are there")
    try:
        start_ray(settings.data_dir)
        base = run(settings)
        client = ApiClient(base)
        wait_until(client.alive, _READY_TIMEOUT_S, "the API's first answer")
        console.print(
            f"page {base}/   API docs {base}/docs   data {settings.data_dir.resolve()}   Ctrl-C stops"
        )
        while not stop.wait(_REPORT_EVERY_S):
            _print_status(console, client)
    except KeyboardInterrupt:
        console.print("stopping …")
    finally:
        stop_ray()


def _print_status(console: Console, client: ApiClient) -> None:
    try:
        stats = client.stats()
    except ApiError as error:
        console.print(f"[yellow]{error}[/]")
        return
    console.print(status_line(stats), highlight=False)


def status_line(stats: dict[str, Any]) -> str:
    """One line of the running system's state."""
    events, models = stats.get("events") or {}, stats.get("models") or {}
    learner, model = stats.get("learner") or {}, stats.get("model") or {}
    parts = [
        f"{events.get('rate_per_s', 0):,.0f} events/s",
        f"applied {events.get('applied', 0):,}",
        f"dead letters {events.get('dead_lettered', 0):,}",
        f"lag {stats.get('lag', 0):,}",
        f"users {stats.get('users', 0):,}",
        f"windows {stats.get('windows', 0):,}",
        f"model {model.get('version') or 'none yet'}",
        f"promoted {models.get('promoted', 0)} rejected {models.get('rejected', 0)}",
        f"learner {learner.get('phase', 'starting')} {learner.get('detail', '')}".strip(),
    ]
    problems = stats.get("problems") or {}
    return " · ".join(parts) + (f" · [red]{problems}[/]" if problems else "")
