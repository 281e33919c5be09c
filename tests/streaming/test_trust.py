"""Trust per window and people's decisions, as files, as loss weights, and in the rows of users."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming import state as state_module
from streaming.errors import TrustError
from streaming.state import open_store
from streaming.trust import (
    DETECTOR,
    decide,
    decisions_file,
    read_decisions,
    read_trust,
    screened_windows,
    trust_file,
    trust_folder,
    weights,
    write_trust,
)
from streaming.windows import complete_windows, read_window, shard_file
from tests.streaming.oracle import Event, make_batch
from tests.streaming.test_state import SETTINGS, WINDOW_MS

MONDAY = 1_795_392_000_000
ANN, BOB, CAT = 1, 2**63 + 5, 2**64 - 1


def hashes(*users):
    return np.array(users, np.uint64)


def write(data_dir, verdicts, start_ms=MONDAY):
    """`verdicts`: user: (trust, quarantined)."""
    trust = np.array([trust for trust, _ in verdicts.values()], np.float32)
    held = np.array([held for _, held in verdicts.values()], bool)
    reasons = [f"reason {user}" for user in verdicts]
    return write_trust(data_dir, start_ms, hashes(*verdicts), trust, held, reasons, detector="d1")


def test_a_window_is_read_as_it_was_written(tmp_path):
    assert read_trust(tmp_path, MONDAY) is None
    assert screened_windows(tmp_path) == []
    path = write(tmp_path, {CAT: (0.2, True), ANN: (0.5, False), BOB: (0.9, False)})
    write(tmp_path, {}, MONDAY - 3_600_000)
    assert path.name == "start=2026-11-23T00-00-00Z.parquet"
    assert screened_windows(tmp_path) == [MONDAY - 3_600_000, MONDAY]
    table = read_trust(tmp_path, MONDAY)
    assert table["user"].to_pylist() == [ANN, BOB, CAT]
    assert table["quarantined"].to_pylist() == [False, False, True]
    assert table["reason"].to_pylist() == [f"reason {user}" for user in (ANN, BOB, CAT)]
    assert pq.read_schema(path).metadata[DETECTOR] == b"d1"
    assert len(read_trust(tmp_path, MONDAY - 3_600_000)) == 0
    assert {file.name for file in trust_folder(tmp_path).iterdir()} == {
        path.name,
        trust_file(tmp_path, MONDAY - 3_600_000).name,
    }


@pytest.mark.parametrize(
    ("users", "trust", "message"),
    [
        ((1, 2), (0.5,), "one trust, quarantined and reason per user, got .*'users': 2, 'trust': 1"),
        ((1, 1), (0.5, 0.5), "distinct users, got #0000000000000001"),
        ((1, 2), (0.5, float("nan")), "from 0 to 1, got nan for user #0000000000000002"),
        ((1,), (1.5,), "from 0 to 1, got 1.5"),
    ],
)
def test_verdicts_that_make_no_sense_are_refused(tmp_path, users, trust, message):
    held, reasons = np.zeros(len(trust), bool), [""] * len(trust)
    with pytest.raises(ValueError, match=message):
        write_trust(tmp_path, MONDAY, hashes(*users), np.array(trust, np.float32), held, reasons)
    assert screened_windows(tmp_path) == []


def test_weights_are_the_windows_trust_unless_people_decided_otherwise(tmp_path):
    write(tmp_path, {1: (0.5, False), 2: (0.3, True), 3: (0.3, True), 4: (0.3, True), 5: (0.9, False)})
    for user, decision in ((3, "held"), (3, "released"), (4, "purged"), (5, "held"), (6, "released")):
        decide(tmp_path, user, decision)
    users = hashes(CAT, 6, 5, 4, 3, 2, 1, 0)
    assert weights(tmp_path, MONDAY, users).tolist() == [1, 1, 0, 0, 1, 0, 0.5, 1]
    assert weights(tmp_path, MONDAY, hashes()).tolist() == []


def test_where_nothing_was_screened_what_earlier_windows_said_counts(tmp_path):
    assert weights(tmp_path, MONDAY, hashes(1, 2)).tolist() == [1, 1]
    decide(tmp_path, 2, "released")
    carried = np.array([0.25, 0], np.float32)
    assert weights(tmp_path, MONDAY, hashes(1, 2), carried).tolist() == [0.25, 1]
    write(tmp_path, {})
    assert weights(tmp_path, MONDAY, hashes(1, 2), carried).tolist() == [1, 1]  # screened, and found honest


@settings(max_examples=20, deadline=None)
@given(
    st.dictionaries(st.integers(0, 9), st.tuples(st.floats(0, 1, width=32), st.booleans())),
    st.lists(st.integers(0, 12)),
)
def test_weights_of_any_users_in_any_order(tmp_path_factory, verdicts, users):
    folder = tmp_path_factory.mktemp("weights")
    write(folder, verdicts)
    expected = [0 if verdicts.get(u, (1, False))[1] else verdicts.get(u, (1, False))[0] for u in users]
    assert weights(folder, MONDAY, hashes(*users)).tolist() == expected


def test_the_newest_decision_counts_and_a_torn_line_does_not(tmp_path):
    assert read_decisions(tmp_path) == {}
    decide(tmp_path, CAT, "held", by="ann", note="too many reviews {}")
    with decisions_file(tmp_path).open("a") as file:
        file.write('{"user": "7", "decision": "held", "note": "{}')  # the machine went down here
    decide(tmp_path, CAT, "released", by="bob")
    decisions = read_decisions(tmp_path)
    assert list(decisions) == [CAT]
    assert (decisions[CAT].decision, decisions[CAT].by, decisions[CAT].weight) == ("released", "bob", 1)
    assert f'"user": "{CAT}"' in decisions_file(tmp_path).read_text()


def test_damaged_files_are_named(tmp_path):
    path = write(tmp_path, {ANN: (0.5, True)})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(TrustError, match=rf"{path.name} cannot be read .*; remove it"):
        weights(tmp_path, MONDAY, hashes(ANN))
    pq.write_table(pa.table({"user": pa.array([1], pa.uint64())}), path)
    with pytest.raises(TrustError, match=r"\['trust', 'quarantined', 'reason'\] missing"):
        read_trust(tmp_path, MONDAY)
    decisions_file(tmp_path).write_text('{"user": "1", "decision": "banned", "at": 1}\n')
    with pytest.raises(TrustError, match="released, purged, held, got 'banned'"):
        read_decisions(tmp_path)
    decisions_file(tmp_path).write_text('{"user": "ann", "decision": "held", "at": 1}\n')
    with pytest.raises(TrustError, match="mend or remove that line"):
        read_decisions(tmp_path)


class Rows:
    """A store whose windows 0, 1, 2 … hold the users given, and the trust of its rows."""

    def __init__(self, store, folder):
        self.store, self.folder, self.sent = store, folder, 0

    def events(self, window, *users):
        events = [
            Event(user, item=9, time_ms=window * WINDOW_MS + 1, offset=self.sent + place)
            for place, user in enumerate(users)
        ]
        self.sent += len(events)
        self.store.apply(make_batch(events, [window * WINDOW_MS] * len(events)))

    def screen(self, window, verdicts):
        trust = np.array(list(verdicts.values()), np.float32)
        return self.store.set_trust(window * WINDOW_MS, hashes(*verdicts), trust)

    def trust(self):
        rows = self.store.rows()
        return dict(zip(rows["user"].tolist(), rows["trust"].tolist(), strict=True))

    def column(self, window):
        [found] = [
            w for w in complete_windows(self.folder / "windows", 1) if w.start_ms == window * WINDOW_MS
        ]
        table = read_window(found.path)
        return dict(zip(table["user"].to_pylist(), table["trust"].to_pylist(), strict=True))


@pytest.fixture
def rows(tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        yield Rows(store, tmp_path)


def test_trust_lands_in_the_row_and_in_the_next_windows_column(rows):
    rows.events(0, ANN, BOB)
    rows.events(2, ANN, BOB, CAT)  # closes window 0
    assert rows.screen(0, {BOB: 0.25, 77: 0.5}) == 1
    assert rows.trust() == {ANN: 1, BOB: 0.25, CAT: 1}
    assert rows.column(0) == {ANN: 1, BOB: 1}
    rows.events(4, ANN)
    assert rows.column(2) == {ANN: 1, BOB: 0.25, CAT: 1}


def test_a_screen_changes_nothing_again_or_out_of_turn_or_before_the_window_is_closed(rows):
    rows.events(0, ANN)
    rows.events(1, ANN)
    assert rows.screen(0, {ANN: 0.5}) == 0  # still open: a state that is being rebuilt is not there yet
    assert rows.store.stats().screened_ms < 0
    rows.events(3, ANN)
    assert rows.screen(1, {ANN: 0.5}) == 1
    assert rows.screen(1, {ANN: 0.1}) == 0
    assert rows.screen(0, {ANN: 0.2}) == 0
    assert rows.trust() == {ANN: 0.5}
    assert rows.store.stats().screened_ms == WINDOW_MS


def test_who_is_found_honest_where_he_was_active_is_trusted_again(rows):
    rows.events(0, ANN, BOB)
    rows.events(2, BOB)
    rows.screen(0, {ANN: 0.0, BOB: 0.0})
    rows.events(4, CAT)
    rows.screen(2, {})
    assert rows.trust() == {ANN: 0, BOB: 1, CAT: 1}  # ann was not there: nothing speaks for her


def test_a_screen_does_not_reach_who_was_erased_since(rows, tmp_path):
    rows.events(0, ANN, BOB)
    rows.events(2, BOB)
    rows.store.apply(make_batch([Event(ANN, time_ms=2500, type=255, offset=rows.sent)], [2000]))
    rows.sent += 1
    rows.events(3, ANN)
    assert rows.screen(0, {ANN: 0.0, BOB: 0.5}) == 1
    assert rows.trust() == {ANN: 1, BOB: 0.5}


def test_without_the_windows_file_the_named_are_believed_and_nobody_else_is_judged(rows, tmp_path):
    rows.events(0, ANN, BOB)
    rows.events(2, BOB)
    rows.screen(0, {BOB: 0.5})
    rows.events(4, CAT)
    shard_file(tmp_path / "windows", 2 * WINDOW_MS, 0).unlink()
    assert rows.screen(2, {CAT: 0.5}) == 1
    assert rows.trust() == {ANN: 1, BOB: 0.5, CAT: 0.5}


def test_decisions_reach_their_users_only_and_are_noted(rows):
    rows.events(0, ANN, BOB, CAT)
    rows.events(2, ANN)
    rows.screen(0, {BOB: 0.0, CAT: 0.5})
    decided = hashes(BOB, ANN, 77), np.array([1, 0, 1], np.float32)
    assert rows.store.set_decided(120, *decided) == 2
    assert rows.store.set_decided(120, *decided) == 0
    assert rows.trust() == {ANN: 0, BOB: 1, CAT: 0.5}
    assert rows.store.stats().decisions == 120


def test_a_crash_on_the_way_leaves_row_and_note_as_they_were(tmp_path, monkeypatch):
    def die(*arguments):
        put(*arguments)
        raise RuntimeError("killed")

    put = state_module.put_trust
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        rows = Rows(store, tmp_path)
        rows.events(0, ANN)
        rows.events(2, ANN)
        monkeypatch.setattr(state_module, "put_trust", die)
        with pytest.raises(RuntimeError, match="killed"):
            rows.screen(0, {ANN: 0.5})
        monkeypatch.undo()
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        rows.store = store
        assert rows.trust() == {ANN: 1}
        assert rows.screen(0, {ANN: 0.5}) == 1
        assert store.positions()[0].applied == rows.sent - 1
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        rows.store = store
        assert rows.trust() == {ANN: 0.5}
        assert rows.screen(0, {ANN: 0.1}) == 0


def test_all_else_of_a_row_stays_as_it_was(rows):
    for window in range(6):  # more events than a row keeps, and one user with fewer
        rows.events(window, ANN, BOB) if window else rows.events(window, ANN, BOB, CAT)
    before = rows.store.rows()
    rows.screen(0, {ANN: 0.5, CAT: 0.25})
    after = rows.store.rows()
    assert after["trust"].tolist() == [0.5, 1, 0.25]
    after["trust"] = before["trust"]
    assert after.tobytes() == before.tobytes()
