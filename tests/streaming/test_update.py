"""What is kept per user, one property each: right whatever the order of arrival and the borders of batches."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streaming.config import StateSettings, StreamingSettings
from streaming.rows import NO_CATEGORY, Rows, blank_rows, pack_rows, row_dtype, unpack_rows
from streaming.update import DUPLICATE, KEPT, Rules, update_rows
from tests.streaming.oracle import Event, Oracle, check_row, columns_of

HOUR = 3_600_000
SETTINGS = StreamingSettings(
    sequence_length=5,
    event_types=("view", "buy"),
    state=StateSettings(half_lives_s=(3600.0, 86400.0), categories=("x", "y", "z"), session_gap_s=600.0),
)
RULES = Rules.of(SETTINGS)

events = st.lists(
    st.builds(
        Event,
        user=st.just(7),
        item=st.integers(1, 9),
        time_ms=st.integers(0, 48 * HOUR),
        type=st.integers(0, 1),
        value_micro=st.integers(-(10**15), 10**15),
        category=st.sampled_from([0, 1, 2, NO_CATEGORY]),
    ),
    min_size=1,
    max_size=30,
)


def row_after(*batches: list[Event], rules: Rules = RULES) -> Rows:
    """The user's row after batches that all count into one window."""
    rows = blank_rows(np.array([7], np.uint64), row_dtype(SETTINGS))
    for batch in batches:
        times = [event.time_ms for event in batch]
        update_rows(rows, np.zeros(len(batch), np.int64), columns_of(batch, [0] * len(batch), times), rules)
    return rows[0]


@settings(deadline=None)
@given(events, st.randoms(use_true_random=False))
def test_the_sequence_is_in_event_time_order_whatever_the_order_of_arrival(log, random):
    shuffled = random.sample(log, len(log))
    row = row_after(shuffled[: len(log) // 2], shuffled[len(log) // 2 :])
    kept = row["events"]["time"][-row["count"] :].tolist()
    assert kept == sorted(event.time_ms for event in log)[-5:]
    assert row["total"] == len(log)
    assert (row["first_ms"], row["last_ms"]) == (min(e.time_ms for e in log), max(e.time_ms for e in log))


@settings(deadline=None)
@given(events, st.randoms(use_true_random=False))
def test_decayed_counts_are_those_of_all_events_at_the_newest_time(log, random):
    shuffled = random.sample(log, len(log))
    row = row_after(*([event] for event in shuffled))
    newest = max(event.time_ms for event in log)
    for half, half_life_s in enumerate(SETTINGS.state.half_lives_s):
        for kind in (0, 1):
            ages = [(newest - event.time_ms) / 1000 for event in log if event.type == kind]
            expected = sum(2 ** (-age / half_life_s) for age in ages)
            assert math.isclose(row["decayed"][half, kind], expected, rel_tol=1e-9, abs_tol=1e-12)


@settings(deadline=None)
@given(events, st.randoms(use_true_random=False))
def test_value_sums_are_exact_to_the_last_digit_in_any_order(log, random):
    shuffled = random.sample(log, len(log))
    for order in (log, shuffled):
        row = row_after(order[:3], order[3:]) if len(order) > 3 else row_after(order)
        sums = [sum(event.value_micro for event in log if event.type == kind) for kind in (0, 1)]
        assert row["value_micro"].tolist() == sums


@settings(deadline=None)
@given(events)
def test_categories_are_counted_and_what_is_none_is_not(log):
    counts = [sum(event.category == category for event in log) for category in range(3)]
    assert row_after(log)["categories"].tolist() == counts


@settings(deadline=None)
@given(events)
def test_in_order_sessions_are_cut_at_the_gaps_and_dwell_is_the_time_within(log):
    ordered = sorted(log, key=lambda event: event.time_ms)
    times = [event.time_ms for event in ordered]
    pauses = [later - earlier for earlier, later in pairwise(times)]
    cuts = [place + 1 for place, pause in enumerate(pauses) if pause > 600_000]
    row = row_after(ordered)
    assert row["sessions"] == len(cuts) + 1
    newest = times[cuts[-1] :] if cuts else times
    assert (row["session_start_ms"], row["session_events"]) == (newest[0], len(newest))
    assert row["dwell_ms"] == sum(pause for pause in pauses if pause <= 600_000)


def test_a_late_event_neither_opens_a_session_nor_adds_dwell():
    row = row_after([Event(7, time_ms=HOUR), Event(7, time_ms=HOUR + 60_000)], [Event(7, time_ms=0)])
    assert (row["sessions"], row["session_events"], row["dwell_ms"]) == (1, 2, 60_000)
    assert row["total"] == 3


def test_a_repeat_among_the_newest_events_is_dropped_and_one_behind_them_is_not():
    rows = blank_rows(np.array([7], np.uint64), row_dtype(SETTINGS))
    log = [Event(7, event_id=number, time_ms=number) for number in (1, 2, 1, 3, 4, 5, 6, 1)]
    columns = columns_of(log, [0] * len(log), [event.time_ms for event in log])
    done = update_rows(rows, np.zeros(len(log), np.int64), columns, RULES)
    assert done.outcome.tolist() == [KEPT, KEPT, DUPLICATE, KEPT, KEPT, KEPT, KEPT, KEPT]


few = StreamingSettings(sequence_length=3, event_types=("view", "buy"))
repeating = st.lists(
    st.builds(
        Event,
        user=st.just(7),
        event_id=st.integers(0, 4),
        time_ms=st.one_of(st.none(), st.integers(0, 60)),  # none: in order
    ),
    max_size=14,
)


@settings(deadline=None, max_examples=400)
@given(repeating, st.data())
def test_repeats_are_told_apart_as_one_by_one_whatever_the_batches(drawn, data):
    log = [
        replace(event, time_ms=10 * place if event.time_ms is None else event.time_ms)
        for place, event in enumerate(drawn)
    ]
    oracle, expected = Oracle(few), []
    for event in log:
        before = oracle.counts["duplicates"]
        oracle.apply(event, 0, event.time_ms)
        expected.append(DUPLICATE if oracle.counts["duplicates"] > before else KEPT)
    rows = blank_rows(np.array([7], np.uint64), row_dtype(few))
    found: list[int] = []
    while len(found) < len(log):
        part = log[len(found) : data.draw(st.integers(len(found) + 1, len(log)))]
        columns = columns_of(part, [0] * len(part), [event.time_ms for event in part])
        found += update_rows(rows, np.zeros(len(part), np.int64), columns, Rules.of(few)).outcome.tolist()
    assert found == expected
    if log:
        check_row(rows[0], oracle.users[7], few)


def test_a_user_starts_anew_after_the_time_to_live():
    rules = Rules(RULES.half_lives_ms, RULES.session_gap_ms, 24 * HOUR)
    log = [Event(7, time_ms=0), Event(7, time_ms=HOUR), Event(7, time_ms=26 * HOUR)]
    row = row_after(log, rules=rules)
    assert (row["total"], row["first_ms"], row["sessions"]) == (1, 26 * HOUR, 1)
    assert row_after(log)["total"] == 3


@settings(deadline=None)
@given(st.lists(events, max_size=4))
def test_rows_are_stored_without_their_empty_places_and_come_back_whole(logs):
    rows = blank_rows(np.arange(1, len(logs) + 1, dtype=np.uint64), row_dtype(SETTINGS))
    for place, log in enumerate(logs):
        columns = columns_of(log, [0] * len(log), [event.time_ms for event in log])
        update_rows(rows, np.full(len(log), place), columns, RULES)
    stored = pack_rows(rows)
    assert unpack_rows(stored, rows.dtype).tobytes() == rows.tobytes()
    empty = rows.dtype.itemsize - 5 * 25
    assert [len(value) for value in stored] == [empty + 25 * int(row["count"]) for row in rows]
