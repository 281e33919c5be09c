"""What the Supervisor sends to shards that lack the trust of their users."""

from types import SimpleNamespace

import numpy as np
import pytest

from services import trust_push
from services.trust_push import TrustPush
from streaming.state import open_store
from streaming.trust import decide, decisions_file, trust_file, write_trust
from tests.streaming.oracle import Event, make_batch
from tests.streaming.test_state import SETTINGS, WINDOW_MS

ANN, BOB = 1, 2


class Host:
    """A store behind the calls of an actor, which are answered at once."""

    def __init__(self, store):
        self.store = store
        self.set_trust = SimpleNamespace(remote=store.set_trust)
        self.set_decided = SimpleNamespace(remote=store.set_decided)

    def live(self, windows):
        """Ann and bob do something in so many windows."""
        times = [window * WINDOW_MS for window in range(windows) for _ in (ANN, BOB)]
        events = [
            Event((ANN, BOB)[offset % 2], time_ms=time_ms, offset=offset)
            for offset, time_ms in enumerate(times)
        ]
        self.store.apply(make_batch(events, times))

    def trust(self):
        return self.store.rows()["trust"].tolist()


@pytest.fixture
def answered_at_once(monkeypatch):
    monkeypatch.setattr(trust_push.ray, "get", lambda answers, timeout: answers)


@pytest.fixture
def host(answered_at_once, tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        yield Host(store)


def screen(data_dir, window, trust):
    held = np.array([BOB], np.uint64)
    write_trust(
        data_dir, window * WINDOW_MS, held, np.array([trust], np.float32), np.array([trust == 0]), ["why"]
    )


def rounds(data_dir, *hosts, count=1):
    """Pushes so many rounds; what changed in each, and the problem of the last."""
    push = TrustPush(data_dir, WINDOW_MS, 10)
    changed = [push.push(hosts, [host.store.stats() for host in hosts]) for _ in range(count)]
    return changed, push.problem


def test_screens_come_in_order_for_a_while_and_then_no_more(host, tmp_path, monkeypatch):
    host.live(5)
    for window in range(3):
        screen(tmp_path, window, window / 16)
    monkeypatch.setattr(trust_push, "_ROUND_S", 0)
    assert rounds(tmp_path, host, count=4) == ([1, 1, 1, 0], None)
    assert host.trust() == [1, 2 / 16]


def test_a_shard_that_starts_anew_gets_them_again_once_it_has_closed_their_windows(host, tmp_path):
    host.live(4)
    screen(tmp_path, 0, 0.5)
    screen(tmp_path, 1, 0.25)
    assert rounds(tmp_path, host) == ([2], None)
    with open_store(tmp_path / "other", tmp_path / "windows", 0, SETTINGS) as store:
        anew = Host(store)
        assert rounds(tmp_path, host, anew) == ([0], None)  # nothing there yet, and nothing noted
        anew.live(4)
        assert rounds(tmp_path, host, anew) == ([2], None)
        assert anew.trust() == host.trust() == [1, 0.25]


def test_decisions_come_when_they_are_made_and_outlast_screens(host, tmp_path):
    host.live(3)
    screen(tmp_path, 0, 0.0)
    rounds(tmp_path, host)
    decide(tmp_path, BOB, "released")
    decide(tmp_path, ANN, "held")
    assert rounds(tmp_path, host, count=2) == ([2, 0], None)
    assert host.trust() == [0, 1]
    screen(tmp_path, 1, 0.0)
    assert rounds(tmp_path, host) == ([0], None)
    assert host.trust() == [0, 1]


def test_a_damaged_screen_is_passed_over_and_reported(host, tmp_path):
    host.live(4)
    screen(tmp_path, 0, 0.5)
    screen(tmp_path, 1, 0.25)
    trust_file(tmp_path, 0).write_bytes(b"PAR1")
    changed, problem = rounds(tmp_path, host)
    assert changed == [1]
    assert "screen of 1970-01-01T00:00:00Z is passed over" in problem
    assert host.trust() == [1, 0.25]


def test_without_the_decisions_no_screen_is_sent_as_it_could_undo_them(host, tmp_path):
    host.live(3)
    screen(tmp_path, 0, 0.5)
    decisions_file(tmp_path).write_text('{"user": "1", "decision": "forgiven", "at": 0}\n')
    changed, problem = rounds(tmp_path, host)
    assert changed == [0]
    assert "forgiven" in problem
    assert host.store.stats().screened_ms < 0
