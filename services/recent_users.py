"""Users to look at: whom the newest events are of, read from the topics now and then."""

import logging
import threading
import time

from services.settings import Settings
from services.user_ids import newest_ids
from streaming.errors import BrokerError

log = logging.getLogger(__name__)

_RECORDS = 1000  # newest ones, of each source
_KEPT_S = 10.0


class RecentUsers:
    """Answers at once with what it read last, and reads anew beside that when asked after ten seconds or more."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._lock = threading.Lock()
        self._found: list[str] = []
        self._due = float("-inf")

    def newest(self, count: int) -> list[str]:
        """Return up to `count` ids, newest first per source; none before the topics were read for the first time."""
        with self._lock:
            if time.monotonic() >= self._due:
                self._due = float("inf")
                threading.Thread(target=self._read, name="recent-users", daemon=True).start()
        return self._found[:count]

    def _read(self) -> None:
        sources = self._settings.streaming.sources
        try:
            found = [user for source in sources for user in newest_ids(self._settings, source, _RECORDS)]
            self._found = list(dict.fromkeys(found))
        except BrokerError as error:
            log.warning("the newest users could not be read: %s", error)
        finally:
            self._due = time.monotonic() + _KEPT_S
