import torch

from training.config import ModelConfig
from training.model import FIRST, SequenceModel, gap_buckets

CONFIG = ModelConfig(dim=16, blocks=2, heads=2, length=10, text_dim=6, id_capacity=20, num_types=3)


def make(seed: int = 0) -> SequenceModel:
    torch.manual_seed(seed)
    model = SequenceModel(CONFIG).eval()
    torch.nn.init.normal_(model.distance_bias.weight)  # distances must matter for the tests to mean anything
    return model


def events(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    items = torch.randn(rows, length, 16, generator=generator)
    types = torch.randint(3, (rows, length), generator=generator)
    times = torch.randint(10**9, (rows, length), generator=generator).cumsum(1)
    return items, types, times, torch.ones(rows, length, dtype=torch.bool)


def test_a_later_event_does_not_change_an_earlier_output() -> None:
    model, (items, types, times, mask) = make(), events(2, 8)
    before = model(items, types, times, mask)
    changed = items.clone()
    changed[:, 5] += 1.0
    after = model(changed, types, times, mask)
    assert torch.allclose(before[:, :5], after[:, :5], atol=1e-6)
    assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_the_time_between_events_matters_and_when_they_began_does_not() -> None:
    model, (items, types, times, mask) = make(), events(2, 8)
    before = model(items, types, times, mask)
    assert torch.allclose(before, model(items, types, times + 10**12, mask), atol=1e-6)
    slower = times.clone()
    slower[:, 5:] += 10**11
    assert not torch.allclose(before[:, 5:], model(items, types, slower, mask)[:, 5:], atol=1e-3)


def test_padding_changes_nothing_whatever_it_holds() -> None:
    model, (items, types, times, mask) = make(), events(2, 6)
    plain = model(items, types, times, mask)
    for filler in (0.0, 7.0):
        padded = torch.cat([torch.full((2, 4, 16), filler), items], dim=1)
        zeros = torch.zeros(2, 4, dtype=torch.long)
        wide = torch.cat([torch.zeros(2, 4, dtype=torch.bool), mask], dim=1)
        out = model(padded, torch.cat([zeros, types], 1), torch.cat([zeros, times], 1), wide)
        assert torch.allclose(out[:, 4:], plain, atol=1e-5)


def test_rows_that_are_all_padding_stay_finite() -> None:
    model, (items, types, times, mask) = make(), events(2, 6)
    mask[0] = False
    assert torch.isfinite(model(items * mask.unsqueeze(-1), types, times, mask)).all()


def test_the_norm_of_a_representation_does_not_matter() -> None:
    model, (items, types, times, mask) = make(), events(2, 6)
    assert torch.allclose(model(items, types, times, mask), model(3.0 * items, types, times, mask), atol=1e-5)


def test_an_item_without_id_is_its_text_alone() -> None:
    model = make()
    text = torch.randn(2, 6)
    both = model.item_representations(text, torch.tensor([3, -1]))
    model.id_embedding.weight.data += 1.0 + torch.randn(20, 16)
    again = model.item_representations(text, torch.tensor([3, -1]))
    assert torch.allclose(both[1], again[1])
    assert not torch.allclose(both[0], again[0], atol=1e-2)


def test_id_dropout_serves_known_items_from_text_in_training_only() -> None:
    model = SequenceModel(CONFIG.model_copy(update={"id_dropout": 0.5}))
    text, slots = torch.randn(200, 6), torch.arange(200) % 20
    bare = model.eval().item_representations(text, torch.full((200,), -1))
    assert not torch.isclose(model.item_representations(text, slots), bare).all(1).any()
    dropped = torch.isclose(model.train().item_representations(text, slots), bare).all(1).float().mean()
    assert 0.3 < dropped < 0.7


def test_scores_are_bounded_by_the_scale() -> None:
    scores = make().scores(torch.randn(3, 16) * 9, torch.randn(5, 16))
    assert scores.shape == (3, 5)
    assert scores.abs().max() <= CONFIG.scale + 1e-4


def test_gap_buckets_by_hand() -> None:
    times = torch.tensor([[0, 0, 5_000, 5_000, 6_000, 10_000, 10_000 + 86_400_000]])
    mask = torch.tensor([[False, False, True, True, True, True, True]])
    assert gap_buckets(times, mask).tolist() == [[FIRST, FIRST, FIRST, 0, 3, 5, 19]]
