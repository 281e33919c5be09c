import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.training.synthetic import window_table
from tests.training.test_losses import CONFIG
from training.config import AdversarialConfig
from training.data import Batch, cut, from_window, make_batch
from training.losses import Negatives, Objective, draw_negatives
from training.model import SequenceModel
from training.repeats import past_of, summed_by_item, time_buckets, with_repeats

ITEMS = 12
TEXT, SLOTS = torch.randn(ITEMS, 4, generator=torch.Generator().manual_seed(3)), torch.arange(ITEMS)


def make(repeats: str, attack: bool = False) -> Objective:
    config = CONFIG.model_copy(update={"id_capacity": ITEMS, "repeats": repeats})
    torch.manual_seed(0)
    model = SequenceModel(config)
    if model.repeats is not None:  # biases must matter for the tests to mean anything
        for table in (model.repeats.distance_bias, model.repeats.time_bias):
            torch.nn.init.normal_(table.weight)
        torch.nn.init.constant_(model.repeats.user_bias.bias, 1.0)
    return Objective(model, AdversarialConfig(enabled=attack)).train()


def a_batch(*rows: list[int]) -> Batch:
    told = [{"items": row, "times": [1000 * 4**at for at in range(len(row))]} for row in rows]
    sequences = from_window(window_table(told))
    return make_batch(sequences, sequences.items.astype("int64"), cut(sequences, 6))


def with_last_target(batch: Batch, item: int) -> Batch:
    """One row of which only the last position is asked, for this item."""
    targets = torch.full_like(batch.targets, -1)
    targets[:, -1] = item
    return dataclasses.replace(batch, targets=targets)


def loss(task: Objective, batch: Batch, drawn: Negatives | None = None) -> float:
    return task(batch, TEXT, SLOTS, drawn)[1].item()


def scores_after(task: Objective, batch: Batch) -> Tensor:
    items = task.model.item_representations(TEXT, SLOTS)
    history = items[batch.items] * batch.mask.unsqueeze(-1)
    return task.model.next_scores(history, batch.types, batch.times, batch.mask, items, batch.items)[0]


def test_what_a_history_holds() -> None:
    items = torch.tensor([[0, 5, 3, 5], [0, 0, 7, 7]])
    mask = torch.tensor([[True, True, True, True], [False, False, True, True]])
    wanted = torch.tensor([[False, True, False, True], [False, False, True, False]])
    past = past_of(items, mask, wanted, 8)
    assert past.holds(torch.tensor([0, 3, 5, 7])).tolist() == [
        [True, False, True, False],
        [True, True, True, False],
        [False, False, False, True],
    ]
    assert past.holds_own(torch.tensor([3, 3, 0])).tolist() == [False, True, False]


@pytest.mark.parametrize("history", [[4, 5, 6], [4, 5, 4, 4], [4]])
def test_with_copies_the_probabilities_of_all_items_sum_to_one_and_are_those_of_the_scores(
    history: list[int],
) -> None:
    task = make("copied").eval()
    batch = a_batch([*history, 0])
    chances = torch.tensor([-loss(task, with_last_target(batch, item)) for item in range(ITEMS)]).exp()
    assert float(chances.sum()) == pytest.approx(1.0, abs=1e-5)
    assert torch.allclose(chances, torch.softmax(scores_after(task, batch), 0), atol=1e-6)


def test_excluded_items_are_neither_asked_nor_in_the_way() -> None:
    task = make("excluded").eval()
    batch = a_batch([4, 5, 4, 0])
    new = [item for item in range(ITEMS) if item not in (4, 5)]
    losses = {item: loss(task, with_last_target(batch, item)) for item in range(ITEMS)}
    assert losses[4] == losses[5] == 0.0
    expected = -torch.log_softmax(scores_after(task, batch)[new], 0)
    assert torch.allclose(torch.tensor([losses[item] for item in new]), expected, atol=1e-5)


def test_plain_is_the_softmax_over_all_items() -> None:
    task = make("plain").eval()
    batch = a_batch([4, 5, 4, 0])
    expected = -torch.log_softmax(scores_after(task, batch), 0)[4]
    assert loss(task, with_last_target(batch, 4)) == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("repeats", ["excluded", "copied"])
def test_the_sampled_softmax_agrees_with_the_full_one(repeats: str) -> None:
    task = make(repeats).eval()
    batch = a_batch([4, 5, 4, 6, 5, 7], [1, 2, 3])
    drawn = draw_negatives(torch.linspace(0, 2, ITEMS), 60_000, torch.Generator().manual_seed(0))
    assert loss(task, batch, drawn) == pytest.approx(loss(task, batch), rel=5e-3)


@pytest.mark.parametrize("repeats", ["excluded", "copied"])
def test_a_batch_of_repeats_alone_gives_finite_gradients(repeats: str) -> None:
    task = make(repeats, attack=True)
    mixed, _, _ = task(a_batch([4, 4, 4], [5, 5]), TEXT, SLOTS, strength=1.0)
    mixed.backward()
    gradients = [p.grad for p in task.parameters() if p.grad is not None]
    assert gradients
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


def test_copying_is_learned_where_users_repeat() -> None:
    """Users go round three items of their own: nothing but their past tells which comes next."""
    rng = np.random.default_rng(0)
    task = make("copied")
    optimiser = torch.optim.Adam(task.parameters(), lr=0.02)
    for _ in range(150):
        loops = [rng.permutation(ITEMS)[:3].tolist() * 2 for _ in range(16)]
        optimiser.zero_grad()
        task(a_batch(*loops), TEXT, SLOTS)[0].backward()
        optimiser.step()
    task.eval()
    hits = 0
    for _ in range(20):
        loop = rng.permutation(ITEMS)[:3].tolist()
        scores = scores_after(task, a_batch([*loop, *loop[:2], 0]))
        hits += int(scores.argmax()) == loop[2]
    assert hits >= 18


def test_one_history_is_summed_as_many_are() -> None:
    rows, copies = np.array([7, 2, 7, 3]), np.array([0.5, -1.0, -500.0, -1e9], np.float32)
    distinct, summed = summed_by_item(rows, copies)
    mixed = with_repeats(torch.zeros(1, 9), torch.from_numpy(copies)[None], torch.from_numpy(rows)[None])
    assert distinct.tolist() == [2, 3, 7]
    assert summed[[0, 2]] == pytest.approx(mixed[0, [2, 7]].numpy(), abs=1e-6)
    assert summed[[0, 2]] == pytest.approx([-1.0, 0.5])
    assert mixed[0, 3] == 0.0  # nothing to copy there: the item is scored like any other


def test_time_buckets_by_hand() -> None:
    elapsed = torch.tensor([-5, 0, 1, 250, 499, 500, 999, 1000, 1999, 2000, 86_400_000, 2**62])
    assert time_buckets(elapsed).tolist() == [0, 0, 1, 1, 1, 2, 2, 3, 3, 4, 19, 39]
