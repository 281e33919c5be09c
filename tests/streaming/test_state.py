"""The store against a plain oracle: any batching, re-sending and restarting leads to the same state."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.config import StreamingSettings, WindowSettings
from streaming.errors import GapError, StoreError
from streaming.reader import StateReader
from streaming.state import ShardStore, open_store
from streaming.windows import complete_windows, read_window
from tests.streaming.oracle import Event, Oracle, check_rows, make_batch

LENGTH, WINDOW_MS, LATENESS_MS = 4, 1000, 500
SETTINGS = StreamingSettings(
    sequence_length=LENGTH,
    event_types=("view", "click", "buy"),
    logical_shards=1,
    half_life_s=2.0,
    map_size_gib=0.05,
    windows=WindowSettings(length_s=WINDOW_MS / 1000, lateness_s=LATENESS_MS / 1000),
)

a_record = st.tuples(
    st.integers(1, 3),  # user
    st.integers(1, 9),  # item
    st.integers(0, 6),  # event id, 0: none
    st.integers(0, 5000),  # time
    st.integers(0, 2),  # type
)


def log_of(records: list[tuple[int, int, int, int, int]]) -> tuple[list[Event], list[int]]:
    """A partition's log, and the window of each event by the running watermark."""
    times = np.array([record[3] for record in records])
    behind = np.concatenate([[-(10**9)], np.maximum.accumulate(times)[:-1]]) - LATENESS_MS
    windows = np.maximum(times, behind) // WINDOW_MS * WINDOW_MS
    return [(*record, offset) for offset, record in enumerate(records)], windows.tolist()


@settings(max_examples=60, deadline=None)
@given(st.lists(a_record, min_size=1, max_size=60), st.data())
def test_any_batching_resending_and_restarting_equals_the_oracle(records, data):
    log, windows = log_of(records)
    oracle = Oracle(LENGTH, WINDOW_MS)
    for event, window in zip(log, windows, strict=True):
        oracle.apply(event, window)
    running_max = np.maximum.accumulate([event[3] for event in log])

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        store = ShardStore(root / "state", root / "windows", 0, SETTINGS)
        done = 0
        while done < len(log):
            start = data.draw(st.integers(0, done), label="from")
            stop = data.draw(st.integers(start + 1, len(log)), label="to")
            store.apply(
                make_batch(log[start:stop], windows[start:stop], max_time_ms=int(running_max[stop - 1]))
            )
            done = max(done, stop)
            if data.draw(st.booleans(), label="restart"):
                store.close()
                store = ShardStore(root / "state", root / "windows", 0, SETTINGS)
        check_rows(oracle, store.rows(), SETTINGS.half_life_s * 1000)
        stats = store.stats()
        assert (stats.applied, stats.duplicates) == (oracle.applied, oracle.duplicates)
        closed = complete_windows(root / "windows", 1)
        watermark = int(running_max[-1]) - LATENESS_MS
        assert [w.start_ms for w in closed] == [w for w in sorted(set(windows)) if w + WINDOW_MS <= watermark]
        for window in closed:
            rows = read_window(window.path).to_pylist()
            found = {
                row["user"]: (
                    list(zip(row["times"], row["items"], row["types"], strict=True)),
                    row["target_from"],
                )
                for row in rows
            }
            assert found == oracle.window(window.start_ms)
        store.close()


def test_a_gap_is_refused_and_changes_nothing(tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([(1, 1, 1, 10, 0, 0)], [0]))
        with pytest.raises(GapError, match="starts at 2; rewind to 1"):
            store.apply(make_batch([(1, 2, 2, 20, 0, 2)], [0]))
        assert store.positions()[0].applied == 0
        assert store.stats().applied == 1


def test_dead_letters_are_counted_once_however_often_they_are_sent(tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        for upto in (3, 5, 5):
            offsets = np.arange(upto + 1, dtype=np.int64)
            store.apply(make_batch([], [], from_offset=0, upto_offset=upto, dead_letters=offsets))
        assert store.stats().dead_letters == 6


def test_reader_sees_a_commit_at_once_and_knows_who_is_unknown(tmp_path):
    from streaming.hashing import hash_one

    reader = StateReader(tmp_path / "state", 1, LENGTH, 3)
    assert reader.read(["ann"])["total"].tolist() == [0]
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        for offset in range(3):
            batch = make_batch([(1, offset + 1, 0, 10 * offset, 1, offset)], [0])
            batch.events.user[:] = np.uint64(hash_one("ann"))
            store.apply(batch)
            rows = reader.read(["bob", "ann"])
            assert rows["total"].tolist() == [0, offset + 1]
            assert rows["offset"][1] == offset
    reader.close()


def test_reader_tells_the_newest_event_time_of_the_stream(tmp_path):
    reader = StateReader(tmp_path / "state", 1, LENGTH, 3)
    assert reader.newest_ms() is None
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([(1, 1, 1, 4321, 0, 0)], [4000]))
        store.apply(make_batch([(2, 1, 1, 99, 0, 0)], [0], partition=1))
        assert reader.newest_ms() == 4321
        reader.close()


def test_a_store_refuses_settings_it_was_not_made_with(tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS):
        pass
    other = SETTINGS.model_copy(update={"sequence_length": 9})
    with pytest.raises(StoreError, match=r"sequence_length.*\(4, 9\)"):
        ShardStore(tmp_path / "state", tmp_path / "windows", 0, other)


def test_an_idle_partition_does_not_hold_windows_open(tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([(1, 1, 1, 10, 0, 0), (1, 2, 2, 5000, 0, 1)], [0, 5000], num_partitions=2))
        assert complete_windows(tmp_path / "windows", 1) == []
        store.apply(
            make_batch([], [], partition=1, from_offset=0, upto_offset=-1, num_partitions=2, idle=True)
        )
        assert [window.start_ms for window in complete_windows(tmp_path / "windows", 1)] == [0]


def test_a_reader_opened_early_keeps_reading_when_the_store_has_grown_large(tmp_path):
    """In another process, as in production: the reader opens before the first commit; 30 MB follow."""
    import subprocess
    import sys

    from streaming.hashing import hash_one

    code = (
        "import sys; from pathlib import Path; from streaming.reader import StateReader\n"
        f"reader = StateReader(Path({str(tmp_path / 'state')!r}), 1, {LENGTH}, 3)\n"
        "for line in sys.stdin: print(reader.read([line.strip()])['total'][0], flush=True)\n"
    )
    large = SETTINGS.model_copy(update={"map_size_gib": 1.0})
    with open_store(tmp_path / "state", tmp_path / "windows", 0, large) as store:
        reader = subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)

        def ask(user):
            reader.stdin.write(f"{user}\n")
            reader.stdin.flush()
            return int(reader.stdout.readline())

        assert ask("ann") == 0
        users = [hash_one(f"u{number}") >> 1 for number in range(100_000)]
        store.apply(
            make_batch([(user, 1, 0, 10, 0, row) for row, user in enumerate(users)], [0] * len(users))
        )
        batch = make_batch([(1, 1, 0, 10, 0, len(users))], [0])
        batch.events.user[:] = np.uint64(hash_one("ann"))
        store.apply(batch)
        assert ask("ann") == 1
        reader.stdin.close()
        reader.wait(10)


def test_closing_a_window_makes_the_offsets_behind_it_durable(tmp_path):
    """Otherwise records sent again after a crash would count into a window that is closed, and open another."""
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([(1, 1, 1, 10, 0, 0)], [0]))
        for offset, newest in ((1, 20), (2, 5000)):  # records of other shards: they only move the offset on
            batch = make_batch([], [], from_offset=offset, upto_offset=offset, max_time_ms=newest)
            store.apply(replace(batch, windows=np.array([0]), window_offsets=np.array([offset])))
        assert [w.start_ms for w in complete_windows(tmp_path / "windows", 1)] == [0]
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        assert store.positions()[0].applied == 2
