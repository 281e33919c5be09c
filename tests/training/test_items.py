import numpy as np
import pytest

from training.errors import DataError
from training.items import ItemSlots, build_table


def u64(*values: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.array(values, dtype=np.uint64)


def test_slots_are_given_once_and_kept() -> None:
    slots = ItemSlots(4)
    assert slots.touch(u64(7, 9, 7, 0), tick=1).tolist() == []
    held = slots.lookup(u64(7, 9, 5, 0))
    assert sorted(held[:2]) == [0, 1]
    assert held[2:].tolist() == [-1, -1]
    slots.touch(u64(9, 5), tick=2)
    assert slots.lookup(u64(7, 9)).tolist() == held[:2].tolist()


def test_the_least_recently_used_is_recycled_and_named() -> None:
    slots = ItemSlots(2)
    slots.touch(u64(1, 2), tick=1)
    slots.touch(u64(2), tick=2)
    old = slots.lookup(u64(1))
    assert slots.touch(u64(3), tick=3).tolist() == old.tolist()
    assert slots.lookup(u64(1, 3)).tolist() == [-1, *old.tolist()]


def test_with_too_many_items_at_once_the_rarest_go_without() -> None:
    slots = ItemSlots(2)
    slots.touch(u64(1, 2, 2, 3, 3), tick=1)
    assert slots.lookup(u64(1)).tolist() == [-1]
    assert (slots.lookup(u64(2, 3)) >= 0).all()


def test_items_in_use_are_not_evicted_for_newcomers() -> None:
    slots = ItemSlots(2)
    slots.touch(u64(1, 2), tick=1)
    slots.touch(u64(1, 3, 3, 4), tick=2)
    assert (slots.lookup(u64(1, 3)) >= 0).all()
    assert slots.lookup(u64(2, 4)).tolist() == [-1, -1]


def test_slots_survive_a_round_trip() -> None:
    slots = ItemSlots(3)
    slots.touch(u64(5, 6), tick=1)
    again = ItemSlots.from_state(slots.hashes, slots.used)
    assert again.lookup(u64(5, 6)).tolist() == slots.lookup(u64(5, 6)).tolist()


def test_the_table_joins_catalogue_and_strangers() -> None:
    slots = ItemSlots(4)
    slots.touch(u64(20, 40), tick=1)
    text = np.eye(2, dtype=np.float32)
    table = build_table(slots, u64(20, 30), ["b", "c"], text, seen=u64(40, 20, 10), text_dim=2)
    assert table.hashes.tolist() == [10, 20, 30, 40]
    assert table.ids == ["", "b", "c", ""]
    assert (table.slots >= 0).tolist() == [False, True, False, True]
    assert table.text.tolist() == [[0, 0], [1, 0], [0, 1], [0, 0]]
    assert table.rows_of(u64(40, 10)).tolist() == [3, 0]
    with pytest.raises(DataError, match="item table"):
        table.rows_of(u64(99))


def test_another_text_encoder_is_refused() -> None:
    with pytest.raises(DataError, match="width 3, the catalogue holds 2"):
        build_table(ItemSlots(1), u64(1), ["a"], np.zeros((1, 2), np.float32), u64(), text_dim=3)
