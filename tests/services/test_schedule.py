"""The steady schedule: order within lanes, asked before sent, no drift, and an end."""

import random
import threading
import time
from collections.abc import Callable

from services.schedule import Schedule


class Recorder:
    """Records sends and asks; answers after `delay()` seconds from timer threads."""

    def __init__(self, users: list[int], delay: Callable[[], float]) -> None:
        self.users, self.delay = users, delay
        self.sent: list[int] = []
        self.sent_at: list[float] = []
        self.sent_when_asked: dict[int, set[int]] = {}
        self.answered: set[int] = set()
        self.sent_unanswered: list[int] = []

    def send(self, row: int) -> None:
        if row in self.sent_when_asked and row not in self.answered:
            self.sent_unanswered.append(row)
        self.sent.append(row)
        self.sent_at.append(time.monotonic())

    def ask(self, row: int, done: Callable[[], None]) -> bool:
        self.sent_when_asked[row] = set(self.sent)

        def answer() -> None:
            self.answered.add(row)
            done()

        threading.Timer(self.delay(), answer).start()
        return True


def test_every_row_goes_out_once_in_lane_order_and_only_after_its_answer() -> None:
    rng = random.Random(3)
    users = [rng.randrange(12) for _ in range(600)]
    lanes = [user % 3 for user in range(12)]
    seen = Recorder(users, lambda: rng.uniform(0.0, 0.02))
    schedule = Schedule(users, lanes, rate=2000, every=7, send=seen.send, ask=seen.ask)
    assert schedule.run(100, 600, threading.Event()) == 600
    assert sorted(seen.sent) == list(range(100, 600))
    for lane in range(3):
        of_lane = [row for row in seen.sent if lanes[users[row]] == lane]
        assert of_lane == sorted(of_lane)
    assert set(seen.sent_when_asked) == {row for row in range(100, 600) if row % 7 == 0}
    assert seen.sent_unanswered == []
    for row, before in seen.sent_when_asked.items():  # the user's whole past was out when it was asked
        assert {past for past in range(100, row) if users[past] == users[row]} <= before


def test_answers_do_not_hold_up_the_rate() -> None:
    users = list(range(50)) * 8  # everyone's turn comes after everyone else's, so requests can look ahead
    seen = Recorder(users, lambda: 0.05)
    schedule = Schedule(users, list(range(50)), rate=400, every=4, send=seen.send, ask=seen.ask)
    began = time.monotonic()
    schedule.run(0, 400, threading.Event())
    late = [at - began - row / 400 for row, at in zip(seen.sent, seen.sent_at, strict=True)]
    assert min(late) >= -0.005  # never early
    assert sorted(late)[len(late) // 2] < 0.1
    assert time.monotonic() - began < 2.0  # 399 intervals at 400/s; one request after the other takes 5 s


def test_a_slow_answer_holds_up_its_own_lane_only() -> None:
    users = [0, 1] * 20
    seen = Recorder(users, lambda: 0.4)
    schedule = Schedule(users, [0, 1], rate=400, every=40, send=seen.send, ask=seen.ask, lookahead_s=0.0)
    schedule.run(0, 40, threading.Event())
    assert seen.sent[:20] == list(range(1, 40, 2))  # lane 1 went on while row 0 waited
    assert seen.sent[20:] == list(range(0, 40, 2))


def test_a_refused_question_sends_the_row_unasked() -> None:
    sent: list[int] = []
    schedule = Schedule([0] * 20, [0], rate=1000, every=2, send=sent.append, ask=lambda row, done: False)
    schedule.run(0, 20, threading.Event())
    assert sent == list(range(20))


def test_halt_ends_it_at_once_with_no_hole_in_what_was_sent() -> None:
    halt = threading.Event()
    users = [row % 5 for row in range(1000)]
    seen = Recorder(users, lambda: 30.0)  # answers that will not come in time
    seen.ask = lambda row, done: True  # type: ignore[method-assign,assignment]
    schedule = Schedule(users, [0, 1, 0, 1, 0], rate=100, every=10, send=seen.send, ask=seen.ask)
    threading.Timer(0.3, halt.set).start()
    began = time.monotonic()
    reached = schedule.run(0, 1000, halt)
    assert time.monotonic() - began < 1.0
    assert 20 <= reached <= 60
    assert sorted(seen.sent) == list(range(reached))
