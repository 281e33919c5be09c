"""A version that ranks the same requests beside the one that answers, and is shown to nobody.

One thread, one bounded queue: a request is never held up by it, and what does not fit is left out and counted. What
it found is compared with what was shown by the items that both have among their first ten.
"""

import logging
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from serving.ask import Ask
from serving.errors import ServingError
from serving.experiments import metrics
from serving.experiments.plan import Plan
from serving.ranking import Answered
from serving.snapshot import Snapshot

logger = logging.getLogger(__name__)

_TOP = 10
_TOLD_EVERY_S = 60.0


class Shadow:
    """Ranks samples of requests in a thread of its own.

    Args:
        plan: says the share of requests. snapshot: ranks. rank: see `serving.experiments.live.Live`.
        size: requests that may wait.
    """

    def __init__(
        self,
        plan: Plan,
        snapshot: Snapshot,
        rank: Callable[[Snapshot, Sequence[Ask]], list[Answered | ServingError]],
        size: int,
    ) -> None:
        self.plan, self.snapshot = plan, snapshot
        self._rank = rank
        self._share = plan.arms[0].share
        self._random = random.Random(plan.salt)
        self._waiting: queue.Queue[tuple[Ask, list[str]] | None] = queue.Queue(size)
        self._rankings = self._errors = self._dropped = 0
        self._overlap = self._seconds = 0.0
        self._told_at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="serving-shadow", daemon=True)
        self._thread.start()

    def offer(self, ask: Ask, answered: Answered | ServingError) -> None:
        """Have a request ranked, if it is in the sample and there is room; returns at once.

        First pages only: a cursor belongs to the list that it was cut from.
        """
        if isinstance(answered, ServingError) or answered.body is None or ask.cursor is not None:
            return
        if self._random.random() >= self._share:
            return
        shown = [item.item_id for item in answered.body.items[:_TOP]]
        try:
            self._waiting.put_nowait((replace(ask, explain=False, tags=None), shown))
        except queue.Full:
            self._dropped += 1
            metrics.SHADOW_DROPPED.inc()

    def summary(self) -> dict[str, Any]:
        """Counts since the start, mean overlap and mean duration (ms)."""
        done = self._rankings - self._errors
        return {
            "version": self.plan.versions[0],
            "rankings": self._rankings,
            "errors": self._errors,
            "dropped": self._dropped,
            "overlap_at_10": round(self._overlap / done, 4) if done else None,
            "mean_ms": round(1000 * self._seconds / done, 3) if done else None,
        }

    def stop(self, timeout_s: float = 5.0) -> None:
        """End the thread; what waits is left."""
        while True:
            try:
                self._waiting.put_nowait(None)
                break
            except queue.Full:
                self._drain()
        self._thread.join(timeout_s)
        logger.info("shadow ended: %s", self.summary())

    def _drain(self) -> None:
        try:
            while True:
                self._waiting.get_nowait()
        except queue.Empty:
            return

    def _run(self) -> None:
        while (waiting := self._waiting.get()) is not None:
            ask, shown = waiting
            self._rankings += 1
            started = time.perf_counter()
            try:
                [answered] = self._rank(self.snapshot, [ask])
                if isinstance(answered, ServingError):
                    raise answered
            except Exception as error:
                # whatever a version on trial raises: it is counted, and nobody else notices
                self._errors += 1
                metrics.SHADOW_ERRORS.inc()
                logger.warning("the shadow %s failed: %r", self.plan.versions[0], error)
                continue
            self._take_in(time.perf_counter() - started, answered, shown)

    def _take_in(self, duration_s: float, answered: Answered, shown: list[str]) -> None:
        mine = {item.item_id for item in answered.body.items[:_TOP]} if answered.body else set()
        overlap = len(mine.intersection(shown)) / max(len(shown), len(mine), 1)
        self._overlap += overlap
        self._seconds += duration_s
        metrics.SHADOW_OVERLAP.observe(overlap)
        metrics.SHADOW_SECONDS.observe(duration_s)
        if time.monotonic() - self._told_at > _TOLD_EVERY_S:
            self._told_at = time.monotonic()
            logger.info("shadow: %s", self.summary())
