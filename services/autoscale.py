"""How many actors the lag asks for: a pure rule, so that it can be tested without any."""

from dataclasses import dataclass, field

from streaming.config import AutoscaleSettings

_SUSTAINED_S = 5.0  # a burst that drains by itself is no reason to move shards
_LOW = 0.1  # of the target lag; between this and the target nothing changes


@dataclass
class Autoscaler:
    """Doubles the actors while the lag stays above the target; takes one away after a cooldown without lag.

    Doubling catches up in few moves, each of which pauses the stream for a moment; going down one by one
    finds the number that just suffices.
    """

    settings: AutoscaleSettings
    _above_since: float | None = field(default=None, init=False)
    _below_since: float | None = field(default=None, init=False)
    _changed_at: float | None = field(default=None, init=False)

    def wanted(self, lag: int, actors: int, now_s: float) -> int:
        """Number of actors to have, given the lag in records and the present number."""
        settings = self.settings
        if not settings.enabled:
            return actors
        self._above_since = _since(self._above_since, now_s) if lag > settings.target_lag else None
        self._below_since = _since(self._below_since, now_s) if lag < settings.target_lag * _LOW else None
        wanted = min(max(actors, settings.min_actors), settings.max_actors)
        if self._changed_at is None or now_s - self._changed_at >= settings.cooldown_s:
            if self._above_since is not None and now_s - self._above_since >= _SUSTAINED_S:
                wanted = min(actors * 2, settings.max_actors)
            elif self._below_since is not None and now_s - self._below_since >= settings.cooldown_s:
                wanted = max(actors - 1, settings.min_actors)
        if wanted != actors:
            self._changed_at, self._above_since, self._below_since = now_s, None, None
        return wanted


def _since(began: float | None, now_s: float) -> float:
    return now_s if began is None else began
