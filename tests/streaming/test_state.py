"""The store against a plain oracle: any batching, re-sending and restarting leads to the same state."""

import numpy as np
import pytest

from streaming.config import StateSettings, StreamingSettings, WindowSettings
from streaming.errors import GapError, StoreError
from streaming.reader import StateReader
from streaming.state import ShardStore, open_store
from streaming.windows import complete_windows
from tests.streaming.oracle import Event, make_batch

LENGTH, WINDOW_MS, LATENESS_MS = 4, 1000, 500
SETTINGS = StreamingSettings(
    sequence_length=LENGTH,
    event_types=("view", "click", "buy"),
    logical_shards=1,
    state=StateSettings(
        half_lives_s=(2.0, 0.7), categories=("x", "y"), session_gap_s=0.4, ttl_s=3.0, ttl_scan_rows=2
    ),
    map_size_gib=0.05,
    windows=WindowSettings(length_s=WINDOW_MS / 1000, lateness_s=LATENESS_MS / 1000),
)


def test_a_gap_is_refused_and_changes_nothing(tmp_path):
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([Event(1, 1, 1, 10, 0, offset=0)], [0]))
        with pytest.raises(GapError, match="starts at 2; rewind to 1"):
            store.apply(make_batch([Event(1, 2, 2, 20, 0, offset=2)], [0]))
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

    reader = StateReader(tmp_path / "state", SETTINGS)
    assert reader.read(["ann"])["total"].tolist() == [0]
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        for offset in range(3):
            batch = make_batch([Event(1, offset + 1, 0, 10 * offset, 1, offset=offset)], [0])
            batch.events.user[:] = np.uint64(hash_one("ann"))
            store.apply(batch)
            rows = reader.read(["bob", "ann"])
            assert rows["total"].tolist() == [0, offset + 1]
            assert rows["offset"][1] == offset
    reader.close()


def test_reader_tells_the_newest_event_time_of_the_stream(tmp_path):
    reader = StateReader(tmp_path / "state", SETTINGS)
    assert reader.newest_ms() is None
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([Event(1, 1, 1, 4321, 0, offset=0)], [4000]))
        store.apply(make_batch([Event(2, 1, 1, 99, 0, offset=0)], [0], partition=1))
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
        store.apply(
            make_batch(
                [Event(1, 1, 1, 10, 0, offset=0), Event(1, 2, 2, 5000, 0, offset=1)],
                [0, 5000],
                partitions=(0, 1),
            )
        )
        assert complete_windows(tmp_path / "windows", 1) == []
        store.apply(
            make_batch([], [], partition=1, from_offset=0, upto_offset=-1, partitions=(0, 1), idle=True)
        )
        assert [window.start_ms for window in complete_windows(tmp_path / "windows", 1)] == [0]


def test_a_reader_opened_early_keeps_reading_when_the_store_has_grown_large(tmp_path):
    """In another process, as in production: the reader opens before the first commit; 30 MB follow."""
    import subprocess
    import sys

    from streaming.hashing import hash_one

    code = (
        "import sys; from pathlib import Path; from streaming.reader import StateReader\n"
        "from streaming.config import StreamingSettings\n"
        f"settings = StreamingSettings.model_validate_json({SETTINGS.model_dump_json()!r})\n"
        f"reader = StateReader(Path({str(tmp_path / 'state')!r}), settings)\n"
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
            make_batch(
                [Event(user, 1, 0, 10, 0, offset=row) for row, user in enumerate(users)], [0] * len(users)
            )
        )
        batch = make_batch([Event(1, 1, 0, 10, 0, offset=len(users))], [0])
        batch.events.user[:] = np.uint64(hash_one("ann"))
        store.apply(batch)
        assert ask("ann") == 1
        reader.stdin.close()
        reader.wait(10)


def test_closing_a_window_makes_the_offsets_behind_it_durable(tmp_path):
    """Otherwise records sent again after a crash would count into a window that is closed, and open another."""
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        store.apply(make_batch([Event(1, 1, 1, 10, 0, offset=0)], [0]))
        for offset, newest in ((1, 20), (2, 5000)):  # records of other shards: they only move the offset on
            counts_into = {"windows": np.array([0]), "window_offsets": np.array([offset])}
            store.apply(
                make_batch([], [], from_offset=offset, upto_offset=offset, max_time_ms=newest, **counts_into)
            )
        assert [w.start_ms for w in complete_windows(tmp_path / "windows", 1)] == [0]
    with open_store(tmp_path / "state", tmp_path / "windows", 0, SETTINGS) as store:
        assert store.positions()[0].applied == 2
