"""The steady part of a replay: events at an absolute rate, some of them asked about first.

Event `i` is due at `began + (i - start) / rate`, so a slow moment is caught up and the rate does not drift. A
sampled event is asked about up to `lookahead_s` before it is due, but never before the user's earlier events
are sent; it is sent when it is due *and* the answer came or failed. An event that waits holds up only those
behind it in its lane. A lane is a partition: inside one, event time must not run backwards (windows close by
it), between them it may. One thread decides everything; asking happens elsewhere and comes back by a queue.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

Done = Callable[[], None]


class Schedule:
    """Sends rows of a stream at a steady rate.

    Args:
        users: user code of every row.
        lanes: lane of every user code.
        rate: events per second.
        every: one row in this many is sampled; 0 for none.
        send: sends a row; called in order within a lane.
        ask: starts to ask about a row and returns True, and then calls `done` once from any thread; or
            returns False if it will not, and the row is sent without.
    """

    def __init__(
        self,
        users: Sequence[int],
        lanes: Sequence[int],
        rate: float,
        every: int,
        send: Callable[[int], None],
        ask: Callable[[int, Done], bool],
        lookahead_s: float = 0.15,
    ) -> None:
        if not rate > 0:
            raise ValueError(f"rate must be above 0 events/s, got {rate}")
        self._users, self._lanes = users, lanes
        self._rate, self._every, self._lookahead_s = rate, every, lookahead_s
        self._send, self._ask = send, ask
        self._lane_rows: dict[int, deque[int]] = {}  # rows that came into sight and are not sent
        self._user_rows: dict[int, deque[int]] = {}  # the same by user
        self._unanswered: set[int] = set()  # of those, sampled ones whose answer is not here
        self._answered: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._due = 0  # rows before it are due

    def run(self, start: int, stop: int, halt: threading.Event) -> int:
        """Send rows [start, stop) and return the row after the last one sent.

        When `halt` is set no further row becomes due; those that are due are sent, and it returns.
        """
        began = time.monotonic()
        seen = self._due = start
        while True:
            if halt.is_set():
                stop = min(stop, self._due)
                self._give_up_waiting()
            now = time.monotonic()
            while seen < stop and self._at(seen - start, began) - self._lookahead_s <= now:
                self._come_into_sight(seen)
                seen += 1
            while self._due < stop and self._at(self._due - start, began) <= now:
                self._due += 1
                self._advance(self._lane(self._due - 1))
            if self._due >= stop and not self._overdue():
                return stop
            wake_at = now + 0.1
            if seen < stop:
                wake_at = min(wake_at, self._at(seen - start, began) - self._lookahead_s)
            if self._due < stop:
                wake_at = min(wake_at, self._at(self._due - start, began))
            self._take_answers(max(0.0, wake_at - now))

    def _at(self, position: int, began: float) -> float:
        return began + position / self._rate

    def _lane(self, row: int) -> int:
        return self._lanes[self._users[row]]

    def _overdue(self) -> bool:
        return any(rows and rows[0] < self._due for rows in self._lane_rows.values())

    def _come_into_sight(self, row: int) -> None:
        self._lane_rows.setdefault(self._lane(row), deque()).append(row)
        of_user = self._user_rows.setdefault(self._users[row], deque())
        of_user.append(row)
        if self._every and row % self._every == 0:
            self._unanswered.add(row)
            if of_user[0] == row:
                self._start_asking(row)

    def _start_asking(self, row: int) -> None:
        if not self._ask(row, lambda: self._answered.put(row)):
            self._unanswered.discard(row)

    def _advance(self, lane: int) -> None:
        rows = self._lane_rows[lane]
        while rows and rows[0] < self._due and rows[0] not in self._unanswered:
            row = rows.popleft()
            self._send(row)
            of_user = self._user_rows[self._users[row]]
            of_user.popleft()
            if not of_user:
                del self._user_rows[self._users[row]]
            elif of_user[0] in self._unanswered:
                self._start_asking(of_user[0])

    def _take_answers(self, wait_s: float) -> None:
        try:
            row = self._answered.get(timeout=wait_s)
        except queue.Empty:
            return
        while True:
            self._unanswered.discard(row)
            if self._lane_rows.get(self._lane(row)):
                self._advance(self._lane(row))
            try:
                row = self._answered.get_nowait()
            except queue.Empty:
                return

    def _give_up_waiting(self) -> None:
        self._unanswered.clear()
        for lane in self._lane_rows:
            self._advance(lane)
