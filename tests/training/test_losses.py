import math

import torch

from tests.training.synthetic import window_table
from training.config import AdversarialConfig, ModelConfig
from training.data import Batch, cut, from_window, make_batch
from training.losses import Objective, draw_negatives, full_softmax, sampled_softmax
from training.model import SequenceModel

CONFIG = ModelConfig(
    dim=16,
    blocks=1,
    heads=2,
    length=6,
    dropout=0.0,
    id_dropout=0.0,
    text_dim=4,
    id_capacity=30,
    num_types=2,
    scale=5.0,
)


def objective(**adversarial: object) -> Objective:
    torch.manual_seed(0)
    return Objective(SequenceModel(CONFIG), AdversarialConfig(**adversarial)).train()  # type: ignore[arg-type]


def a_batch(trust: float = 1.0) -> Batch:
    sequences = from_window(window_table([{"items": [1, 2, 3, 4]}, {"items": [5, 6, 7], "trust": trust}]))
    return make_batch(sequences, sequences.items.astype("int64"), cut(sequences, 6))


def test_full_softmax_of_equal_scores_is_log_n() -> None:
    model = SequenceModel(CONFIG)
    losses = full_softmax(model, torch.randn(3, 16), torch.ones(8, 16), torch.tensor([0, 3, 7]))
    assert torch.allclose(losses, torch.full((3,), math.log(8)))


def test_sampled_softmax_agrees_with_the_full_one() -> None:
    torch.manual_seed(0)
    model = SequenceModel(CONFIG)
    users, items, targets = torch.randn(4, 16), torch.randn(50, 16), torch.tensor([1, 2, 3, 4])
    skewed = torch.linspace(0, 3, 50)
    drawn = draw_negatives(skewed, 60_000, torch.Generator().manual_seed(0))
    sampled = sampled_softmax(model, users, items, targets, drawn.rows, drawn.log_q)
    full = full_softmax(model, users, items, targets)
    assert torch.allclose(sampled, full, atol=0.05)
    uncorrected = sampled_softmax(model, users, items, targets, drawn.rows, torch.zeros_like(drawn.log_q))
    assert not torch.allclose(uncorrected, full, atol=0.3)


def test_objective_narrows_to_the_rows_in_use_without_changing_the_loss() -> None:
    task, batch = objective(enabled=False), a_batch()
    text, slots = torch.randn(30, 4), torch.arange(30)
    drawn = draw_negatives(torch.zeros(30), 5, torch.Generator().manual_seed(0))
    mixed, _, _ = task(batch, text, slots, drawn)
    items = task.model.item_representations(text, slots)
    wanted = batch.targets >= 0
    users = task.model(items[batch.items] * batch.mask.unsqueeze(-1), batch.types, batch.times, batch.mask)[
        wanted
    ]
    expected = sampled_softmax(task.model, users, items, batch.targets[wanted], drawn.rows, drawn.log_q).sum()
    assert torch.allclose(mixed, expected, rtol=1e-5)


def test_share_zero_or_not_attacking_is_the_clean_loss() -> None:
    text, slots, batch = torch.randn(30, 4), torch.arange(30), a_batch()
    clean = objective()(batch, text, slots, strength=0.0)[0]
    assert torch.equal(objective(share=0.0)(batch, text, slots, strength=1.0)[0], clean)
    mixed, same_clean, adversarial = objective(share=0.25, epsilon=0.3)(batch, text, slots, strength=1.0)
    assert torch.allclose(same_clean, clean)
    assert adversarial > clean
    assert torch.allclose(mixed, 0.75 * clean + 0.25 * adversarial)


def test_the_mixed_loss_leaves_gradients_only_by_its_one_backward() -> None:
    task = objective(steps=3)
    mixed, _, _ = task(a_batch(), torch.randn(30, 4), torch.arange(30), strength=1.0)
    assert all(parameter.grad is None for parameter in task.parameters())
    mixed.backward()
    assert task.model.text_projection.weight.grad is not None


def test_trust_weighs_a_user() -> None:
    text, slots = torch.randn(30, 4), torch.arange(30)
    losses = [objective(enabled=False)(a_batch(trust), text, slots)[1].item() for trust in (0.0, 0.5, 1.0)]
    assert losses[0] < losses[1] < losses[2]
    assert math.isclose(losses[1], (losses[0] + losses[2]) / 2, rel_tol=1e-5)
