"""The store against a plain oracle, whatever happens between two steps: sent again, overlapping, with gaps, out of
order, crashed, restarted, idle. Rows, counts, offsets and windows are always the oracle's."""

import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streaming import environment
from streaming.batcher import Batcher, Layout
from streaming.config import StateSettings, StreamingSettings, WindowSettings
from streaming.errors import GapError
from streaming.rows import FORGET, NEVER, NO_CATEGORY
from streaming.state import ShardStore
from streaming.windows import folder_of
from tests.streaming.oracle import Event, Oracle, check_row, make_batch, together

WINDOW_MS, LATENESS_MS = 1000, 500
SETTINGS = StreamingSettings(
    sequence_length=4,
    event_types=("view", "click", "buy"),
    logical_shards=2,
    map_size_gib=0.01,
    windows=WindowSettings(length_s=WINDOW_MS / 1000, lateness_s=LATENESS_MS / 1000),
    state=StateSettings(
        half_lives_s=(2.0, 0.7), categories=("x", "y"), session_gap_s=0.4, ttl_s=2.5, ttl_scan_rows=2
    ),
)
PARTITIONS, SHARDS = (0, 1), (0, 1)
BATCHER = Batcher(SETTINGS, PARTITIONS, Layout(0, ()), [])

records = st.lists(
    st.builds(
        Event,
        user=st.integers(1, 3),
        item=st.integers(1, 9),
        event_id=st.integers(0, 5),
        time_ms=st.integers(0, 3000),  # beyond the partition's newest time, or before it
        type=st.sampled_from([0, 1, 2, 0, 1, 2, 0, 1, 2, FORGET]),
        value_micro=st.integers(-5, 5),
        category=st.sampled_from([0, 1, NO_CATEGORY]),
    ),
    min_size=1,
    max_size=6,
)


class Exactness(RuleBasedStateMachine):
    """Plays the ingestor of two partitions before two shards, of which one may miss what the other has got."""

    def __init__(self):
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.oracle = Oracle(SETTINGS)
        self.logs: dict[int, list[Event]] = {p: [] for p in PARTITIONS}
        self.fates: dict[int, list[tuple[int, int]]] = {
            p: [] for p in PARTITIONS
        }  # window, clock of each record
        self.applied = {(shard, p): 0 for shard in SHARDS for p in PARTITIONS}
        self.idle = {(shard, p): False for shard in SHARDS for p in PARTITIONS}
        self.known: dict[int, set[int]] = {shard: set() for shard in SHARDS}
        self.closed: dict[int, set[int]] = {shard: set() for shard in SHARDS}
        self.stores: dict[int, ShardStore] = {}
        for shard in SHARDS:
            self.open(shard)
        self.rewind()

    def open(self, shard):
        self.stores[shard] = ShardStore(self.folder / "state", self.folder / "windows", shard, SETTINGS)
        for partition in PARTITIONS:
            self.idle[shard, partition] = False  # only memory held that

    def teardown(self):
        """In the end every shard has closed the same windows."""
        self.rewind()
        for partition in PARTITIONS:
            end = Event(user=99, time_ms=10**6, offset=len(self.logs[partition]))
            self.logs[partition].append(end)
            self.pass_on([(partition, self.done(partition), len(self.logs[partition]))], SHARDS)
        self.windows_are_the_oracles()
        assert self.closed[0] == self.closed[1]
        for store in self.stores.values():
            store.close()
        shutil.rmtree(self.folder)

    def newest(self, partition, upto=None):
        return max((event.time_ms for event in self.logs[partition][:upto]), default=NEVER)

    def done(self, partition):
        return min(self.applied[shard, partition] for shard in SHARDS)

    def tick(self, partitions, idle):
        ticks = [
            make_batch(
                [],
                [],
                partition=partition,
                partitions=PARTITIONS,
                from_offset=self.done(partition),
                upto_offset=self.done(partition) - 1,
                max_time_ms=self.newest(partition, self.done(partition)),
                idle=idle,
            )
            for partition in partitions
        ]
        for shard in SHARDS:
            self.stores[shard].apply(together(ticks))
            self.idle |= {(shard, partition): idle for partition in partitions}
            self.expect_closings(shard)

    def rewind(self):
        """What an ingestor does after a failure, or when a partition that was idle brings records."""
        for partition in PARTITIONS:
            for shard in SHARDS:
                position = self.stores[shard].positions().get(partition)
                stored = 0 if position is None else position.applied + 1
                assert stored <= self.applied[shard, partition]
                self.applied[shard, partition] = (
                    stored  # less than before where a crash took what carried nothing
                )
        self.tick(PARTITIONS, idle=False)
        self.floors = {
            partition: tuple(
                {
                    (position.floor_from, position.floor_ms)
                    for position in (self.stores[shard].positions()[partition] for shard in SHARDS)
                    if position.floor_ms != NEVER
                }
            )
            for partition in PARTITIONS
        }

    def pass_on(self, ranges, reached):
        """Send records of some partitions to shards, as one batch; each takes its users' part."""
        batches = []
        for partition, start, stop in ranges:
            events = self.logs[partition][start:stop]
            times = np.array([event.time_ms for event in events], np.int64)
            clocks = BATCHER.clock(times, self.newest(partition, start)).tolist()
            windows = BATCHER.windows(
                np.array(clocks), np.arange(start, stop), self.floors[partition]
            ).tolist()
            newest = self.newest(partition, stop)
            batches.append(
                make_batch(
                    events, windows, clocks, partition=partition, partitions=PARTITIONS, max_time_ms=newest
                )
            )
            fates = list(zip(windows, clocks, strict=True))
            self.fates[partition] += fates[len(self.fates[partition]) - start :]
            assert fates == self.fates[partition][start:stop]  # as when sent first, perhaps to one shard only
        whole = together(batches)
        for shard in reached:
            mine = whole.events.user % np.uint64(len(SHARDS)) == shard
            self.stores[shard].apply(replace(whole, events=whole.events.take(mine)))
            for partition, start, stop in ranges:
                first = self.applied[shard, partition]
                for place in range(max(start, first), stop):
                    event, fate = self.logs[partition][place], self.fates[partition][place]
                    self.known[shard] |= {fate[0]} - self.closed[shard]
                    if event.user % len(SHARDS) == shard:
                        self.oracle.apply(event, *fate)
                self.applied[shard, partition] = max(first, stop)
            self.expect_closings(shard)

    @rule(partition=st.sampled_from(PARTITIONS), new=records)
    def produce(self, partition, new):
        """Records come into the log; times wander forwards, some far back."""
        base = max(self.newest(partition), 0)
        for event in new:
            time_ms = max(0, base + event.time_ms - 2000)
            place = len(self.logs[partition])
            moved = replace(event, user=event.user + 10 * partition, time_ms=time_ms, offset=place)
            self.logs[partition].append(moved)

    @rule(
        partitions=st.sampled_from([PARTITIONS, (0,), (1,), (1, 0)]),
        reached=st.sampled_from([SHARDS, (0,), (1,)]),
        data=st.data(),
    )
    def send(self, partitions, reached, data):
        """Any ranges that leave no gap: new records, old ones again, or both; of one partition or of both."""
        ranges = []
        for partition in partitions:
            done, end = self.done(partition), len(self.logs[partition])
            if end:
                start = data.draw(st.integers(0, min(done, end - 1)), label="from")
                ranges.append((partition, start, data.draw(st.integers(start + 1, end), label="to")))
        if not ranges:
            return
        if any(self.idle[shard, partition] for shard in SHARDS for partition, _, _ in ranges):
            self.rewind()
        self.pass_on(ranges, reached)

    @rule(partition=st.sampled_from(PARTITIONS), shard=st.sampled_from(SHARDS), ahead=st.integers(1, 3))
    def send_with_a_gap(self, partition, shard, ahead):
        start = self.applied[shard, partition] + ahead
        batch = make_batch([], [], partition=partition, from_offset=start, upto_offset=start + 1)
        with pytest.raises(GapError):
            self.stores[shard].apply(batch)

    @rule(partition=st.sampled_from(PARTITIONS))
    def fall_silent(self, partition):
        if all(self.applied[shard, partition] == len(self.logs[partition]) for shard in SHARDS):
            self.tick([partition], idle=True)

    @rule(shard=st.sampled_from(SHARDS))
    def restart(self, shard):
        self.stores[shard].close()
        self.open(shard)
        self.rewind()

    @rule(shard=st.sampled_from(SHARDS))
    def crash(self, shard):
        """What only memory held is gone."""
        os.close(self.stores[shard]._lock)
        environment.close(self.stores[shard]._env)
        self.open(shard)
        self.rewind()

    @rule(shard=st.sampled_from(SHARDS))
    def expire(self, shard):
        self.stores[shard].expire()

    def expect_closings(self, shard):
        newest = {p: self.newest(p, self.applied[shard, p]) for p in PARTITIONS}
        active = [time_ms for p, time_ms in newest.items() if not self.idle[shard, p]]
        times = active or [time_ms for time_ms in newest.values() if time_ms != NEVER]
        if times and NEVER not in times:
            passed = {start for start in self.known[shard] if start + WINDOW_MS <= min(times) - LATENESS_MS}
            self.closed[shard] |= passed
            self.known[shard] -= passed

    @invariant()
    def rows_are_the_oracles(self):
        rows = {int(row["user"]): row for store in self.stores.values() for row in store.rows()}
        expected = {user: row for user, row in self.oracle.users.items() if row.counted}
        assert rows.keys() <= expected.keys()
        for user, row in rows.items():
            check_row(row, expected[user], SETTINGS)
        for user in expected.keys() - rows.keys():  # dropped after its time to live, before its next event
            partition = user // 10
            clock = self.newest(partition, self.applied[user % len(SHARDS), partition]) - LATENESS_MS
            assert clock - expected[user].last_ms > SETTINGS.state.ttl_s * 1000

    @invariant()
    def counts_and_offsets_are_the_oracles(self):
        stats = [store.stats() for store in self.stores.values()]
        for name, count in self.oracle.counts.items():
            assert (name, sum(getattr(one, name) for one in stats)) == (name, count)
        for (shard, partition), applied in self.applied.items():
            assert self.stores[shard].positions()[partition].applied == applied - 1

    @invariant()
    def windows_are_the_oracles(self):
        for shard in SHARDS:
            files = sorted((self.folder / "windows").glob(f"start=*/shard={shard:04d}.parquet"))
            starts = dict(zip(sorted(self.closed[shard]), files, strict=True))
            for start, file in starts.items():
                assert file.parent.name == folder_of(start)
                rows = pq.read_table(file, partitioning=None).to_pylist()
                found = {
                    row["user"]: (
                        list(zip(row["times"], row["items"], row["types"], strict=True)),
                        row["target_from"],
                    )
                    for row in rows
                }
                expected = self.oracle.window(start)
                assert found == {user: row for user, row in expected.items() if user % len(SHARDS) == shard}


TestExactness = Exactness.TestCase
TestExactness.settings = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
