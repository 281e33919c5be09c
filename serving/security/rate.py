"""Token buckets, in process: how often each caller may ask."""

import math
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable

_ROUNDING_S = 1e-9


class Buckets:
    """A token bucket for each caller, at most `size` of them; the longest unused is forgotten first.

    A bucket is one number, the time at which it would be full again (the generic cell rate algorithm of ITU-T
    I.371). A forgotten bucket counts as full, so that `size` bounds memory and never refuses anybody.

    Args:
        size: buckets kept.
        clock: seconds, never going back.
    """

    def __init__(self, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._full_at: OrderedDict[Hashable, float] = OrderedDict()
        self._size, self._clock = size, clock

    def __len__(self) -> int:
        return len(self._full_at)

    def take(self, caller: Hashable, rate_per_s: float, burst: int | None = None) -> float:
        """Take a token from a caller's bucket.

        Args:
            burst: tokens in a full bucket; None: one second's worth, at least one.

        Returns:
            0 if there was a token; else the seconds until there is one, and nothing is taken.
        """
        now = self._clock()
        interval_s = 1 / rate_per_s
        capacity = burst if burst is not None else max(1, math.ceil(rate_per_s))
        full_at = max(self._full_at.get(caller, now), now)
        wait_s = full_at - now - (capacity - 1) * interval_s
        if wait_s > _ROUNDING_S:
            return wait_s
        self._full_at[caller] = full_at + interval_s
        self._full_at.move_to_end(caller)
        if len(self._full_at) > self._size:
            self._full_at.popitem(last=False)
        return 0.0
