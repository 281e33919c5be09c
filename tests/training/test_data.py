from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.training.synthetic import window_table
from training.data import Sequences, concat, cut, from_window, make_batch
from training.errors import DataError

ROWS = st.lists(
    st.tuples(st.lists(st.integers(1, 9), max_size=23), st.integers(0, 25)), min_size=1, max_size=6
).map(lambda rows: [{"items": items, "target_from": min(at, len(items))} for items, at in rows])


def build(rows: list[dict[str, object]]) -> Sequences:
    return from_window(window_table(rows))


@settings(deadline=None, max_examples=200)
@given(rows=ROWS, length=st.integers(1, 9), data=st.data())
def test_every_target_is_in_exactly_one_chunk(
    rows: list[dict[str, object]], length: int, data: st.DataObject
) -> None:
    overlap, phase = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 20))
    sequences = build(rows)
    chunks = cut(sequences, length, overlap, phase)
    found: Counter[int] = Counter()
    for start, stop, first, row in zip(
        chunks.start, chunks.stop, chunks.first_target, chunks.row, strict=True
    ):
        begin, end = sequences.offsets[row], sequences.offsets[row + 1]
        assert begin <= start < first <= stop < end
        assert stop - start <= length
        assert first - start >= min(overlap, first - begin) or start == begin  # context is kept
        found.update(range(first, stop + 1))
    expected = Counter()
    for row, record in enumerate(rows):
        base = int(sequences.offsets[row])
        items, target_from = record["items"], record["target_from"]
        expected.update(base + t for t in range(max(target_from, 1), len(items)))  # type: ignore[type-var,arg-type]
    assert found == expected
    assert sequences.targets().sum() == sum(expected.values())


@settings(deadline=None, max_examples=50)
@given(rows=ROWS)
def test_first_occurrences_match_a_plain_loop(rows: list[dict[str, object]]) -> None:
    expected = [item not in row["items"][:i] for row in rows for i, item in enumerate(row["items"])]  # type: ignore[index,arg-type,var-annotated]
    assert build(rows).first_occurrences().tolist() == expected


def test_batch_by_hand() -> None:
    times = [1000, 3000, 3000, 9000, 9000]
    sequences = build(
        [{"items": [1, 2, 3, 4, 5], "times": times, "target_from": 3}, {"items": [7, 8], "trust": 0.5}]
    )
    batch = make_batch(sequences, sequences.items.astype(np.int64), cut(sequences, 3))
    assert batch.items.tolist() == [[2, 3, 4], [0, 0, 7]]
    assert batch.targets.tolist() == [[-1, 4, 5], [-1, -1, 8]]
    assert batch.mask.tolist() == [[True, True, True], [False, False, True]]
    assert batch.times.tolist() == [[3000, 3000, 9000], [0, 0, 1000]]
    assert batch.weights.tolist() == [[1.0] * 3, [0.5] * 3]


def test_concat_and_take_keep_rows() -> None:
    both = concat(
        [build([{"items": [1, 2]}]), build([{"items": [3], "target_from": 1}, {"items": [4, 5, 6]}])]
    )
    assert both.offsets.tolist() == [0, 2, 3, 6]
    picked = both.take(np.array([2, 0]))
    assert picked.items.tolist() == [4, 5, 6, 1, 2]
    assert picked.target_from.tolist() == [0, 0]


def test_an_empty_window_has_no_chunks() -> None:
    sequences = build([])
    assert len(sequences) == 0
    assert len(cut(sequences, 5)) == 0


def test_damaged_windows_are_refused() -> None:
    table = window_table([{"items": [1, 2]}])
    with pytest.raises(DataError, match="trust"):
        from_window(table.drop_columns(["trust"]))
    with pytest.raises(DataError, match="as long as `items`"):
        from_window(window_table([{"items": [1, 2], "times": [1]}]))
