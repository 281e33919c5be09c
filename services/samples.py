"""The last minutes of the pipeline in numbers: a bounded ring that the Supervisor fills and the page draws."""

import time
from collections import deque
from typing import Any

EVERY_S = 2.0
_KEPT = 150  # five minutes
_COLUMNS = ("at", "events_per_s", "lag", "applied", "users", "windows", "trained", "promoted")


class Samples:
    """Numbers of the Supervisor's status every two seconds; columns of them on request."""

    def __init__(self) -> None:
        self._rows: deque[tuple[float | int, ...]] = deque(maxlen=_KEPT)
        self._due = 0.0

    def take(self, status: dict[str, Any]) -> None:
        """Keep a sample if it is time; a status from before the pipeline runs is none."""
        now = time.monotonic()
        events = status.get("events")
        if now < self._due or not events:
            return
        self._due = now + EVERY_S
        models = status["models"]
        counts = status["lag"], events["applied"], status["users"], status["windows"]
        self._rows.append(
            (status["observed_at"], events["rate_per_s"], *counts, models["trained"], models["promoted"])
        )

    def columns(self) -> dict[str, Any]:
        """As `serving.models.History` has it, oldest first."""
        rows = list(self._rows)
        return {"every_s": EVERY_S} | {
            name: [row[place] for row in rows] for place, name in enumerate(_COLUMNS)
        }
