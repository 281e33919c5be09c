"""What a shard actor tells in metrics: summed over its logical shards, once a batch."""

import time
from collections.abc import Mapping, Sequence

import numpy as np

from streaming import metrics
from streaming.meters import observe_many, since
from streaming.state import ShardStats, ShardStore

_NAMES = (
    "applied",
    "duplicates",
    "late",
    "dead_letters",
    "erased",
)  # of `metrics.EVENT_OUTCOMES`, in their order
_CLOSED = "windows_closed"


class ShardMeter:
    """Turns the exact counts of stores, which outlive processes, into what this process did."""

    def __init__(self) -> None:
        self._before: dict[int, Mapping[str, int]] = {}
        self._outcomes = [metrics.EVENTS.labels(outcome) for outcome in metrics.EVENT_OUTCOMES]

    def follow(self, stores: Mapping[int, ShardStore]) -> None:
        """Count from now on what happens in these stores; what happened before was another process's."""
        self._before = {shard: self._before.get(shard) or store.totals() for shard, store in stores.items()}

    def applied(self, stores: Mapping[int, ShardStore], seconds: float, events: int) -> None:
        """A batch has been applied.

        Args:
            stores: those followed. seconds: it took. events: in the batch; 0 for a mere tick.
        """
        now: dict[int, Mapping[str, int]] = {shard: store.totals() for shard, store in stores.items()}
        for name, outcome in zip(_NAMES, self._outcomes, strict=True):
            if grown := self._grown(now, name):
                outcome.inc(grown)
        if closed := self._grown(now, _CLOSED):
            metrics.WINDOWS_CLOSED.inc(closed)
        self._before = now
        if events:
            metrics.APPLY_SECONDS.observe(seconds)
            self._tell_freshness(stores)

    def _grown(self, now: Mapping[int, Mapping[str, int]], name: str) -> int:
        return sum(totals[name] - self._before[shard][name] for shard, totals in now.items())

    @staticmethod
    def _tell_freshness(stores: Mapping[int, ShardStore]) -> None:
        times_ms = [times for store in stores.values() for times in store.applied_ms]
        if not times_ms:
            return
        age_s = time.time() - np.concatenate(times_ms) / 1000
        fresh = age_s[age_s >= 0]
        observe_many(metrics.FRESHNESS_SECONDS, fresh)
        if len(fresh) < len(age_s):
            metrics.NEGATIVE_SKEW.inc(len(age_s) - len(fresh))

    @staticmethod
    def look(stores: Mapping[int, ShardStore], stats: Sequence[ShardStats]) -> None:
        """Tell the sizes; they change slowly, so a look now and then will do."""
        metrics.STATE_ROWS.set(sum(shard.users for shard in stats))
        metrics.STATE_BYTES.set(sum(store.disk_bytes() for store in stores.values()))
        marks = [store.watermark_ms for store in stores.values() if store.watermark_ms is not None]
        since(metrics.WATERMARK_DELAY_SECONDS, min(marks) / 1000 if marks else None)
