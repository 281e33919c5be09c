"""What training does with data that is not as it should be: a clear error, or a stated way to go on."""

import numpy as np
import pytest
import torch

from tests.training.synthetic import window_table
from training.config import ModelConfig
from training.data import concat, cut, from_window, make_batch
from training.encoder import encode_sorted
from training.errors import DataError, EncoderError
from training.items import ItemSlots, build_table
from training.model import SequenceModel


def u64(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_a_window_without_rows_joins_others() -> None:
    empty, full = from_window(window_table([])), from_window(window_table([{"items": [1, 2, 3]}]))
    joined = concat([empty, full, empty])
    assert len(joined) == 1
    assert len(cut(joined, 5)) == 1


def test_users_with_one_event_teach_nothing_and_break_nothing() -> None:
    sequences = from_window(window_table([{"items": [7]}, {"items": [1, 2]}, {"items": []}]))
    chunks = cut(sequences, 5)
    assert chunks.row.tolist() == [1]
    batch = make_batch(sequences, sequences.items.astype(np.int64), chunks)
    assert batch.targets.tolist() == [[2]]


@pytest.mark.parametrize("trust", [float("nan"), float("inf"), -0.5, 1.5])
def test_a_trust_that_is_no_share_is_refused(trust: float) -> None:
    table = window_table([{"items": [1, 2]}, {"items": [3, 4], "trust": trust}])
    with pytest.raises(DataError, match=r"`trust` from 0 to 1 .* in row 1: the file is damaged"):
        from_window(table)


def test_items_without_text_get_zeros_and_live_by_their_id() -> None:
    slots = ItemSlots(4)
    slots.touch(u64(5, 9), tick=1)
    table = build_table(slots, u64(5), ["five"], np.zeros((1, 3), np.float32), u64(9), text_dim=3)
    model = SequenceModel(ModelConfig(dim=8, blocks=1, heads=1, text_dim=3, id_capacity=4)).eval()
    with torch.no_grad():
        vectors = model.item_representations(torch.from_numpy(table.text), torch.from_numpy(table.slots))
    assert torch.isfinite(vectors).all()
    assert not torch.allclose(vectors[0], vectors[1])


def test_an_encoder_that_gives_nan_is_refused_with_the_text() -> None:
    def broken(texts: list[str]) -> np.ndarray:
        return np.array([[np.nan if "bad" in text else 1.0] * 3 for text in texts], np.float32)

    assert encode_sorted(["good", ""], 3, broken).tolist() == [[1, 1, 1], [0, 0, 0]]
    with pytest.raises(EncoderError, match="not finite numbers, first for 'a bad text'"):
        encode_sorted(["good", "a bad text"], 3, broken)


def test_an_event_type_that_the_model_does_not_know_is_read_as_the_first() -> None:
    torch.manual_seed(0)
    model = SequenceModel(ModelConfig(dim=8, blocks=1, heads=1, length=4, text_dim=3, num_types=2)).eval()
    items, times, mask = torch.randn(1, 3, 8), torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 3).bool()
    unknown, first, other = (torch.tensor([[1, kind, 0]]) for kind in (7, 0, 1))
    assert torch.equal(model(items, unknown, times, mask), model(items, first, times, mask))
    assert not torch.equal(model(items, unknown, times, mask), model(items, other, times, mask))
