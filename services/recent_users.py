"""Users to look at: whom the newest events are of, read from the topics now and then."""

import threading
import time

from services.settings import Settings
from services.user_ids import newest_ids

_RECORDS = 1000  # newest ones, of each source
_KEPT_S = 10.0


class RecentUsers:
    """Remembers what it found for ten seconds; safe to ask from several threads."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._found: list[str] = []
        self._read_at = float("-inf")

    def newest(self, count: int) -> list[str]:
        """Return up to `count` ids, newest first per source.

        Raises:
            BrokerError: the broker cannot be reached.
        """
        with self._lock:  # who comes while another reads has the same answer
            if time.monotonic() - self._read_at > _KEPT_S:
                sources = self._settings.streaming.sources
                found = [user for source in sources for user in newest_ids(self._settings, source, _RECORDS)]
                self._found, self._read_at = list(dict.fromkeys(found)), time.monotonic()
            return self._found[:count]
