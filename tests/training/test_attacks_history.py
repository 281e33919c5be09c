"""Attacks on histories and on the vectors that stand for them."""

import numpy as np
import pytest
import torch
from torch.nn import functional as fn

from training.attacks import EMBEDDING_ATTACKS, HISTORY_ATTACKS
from training.attacks.sequential import AppendAttack, ReplaceAttack
from training.config import ModelConfig
from training.data import Batch
from training.model import SequenceModel

ROWS, LENGTH, ITEMS = 64, 8, 60
TARGETS = torch.tensor([7, 31])
PACE = 30_000


@pytest.fixture(scope="module", params=["excluded", "copied"])
def model(request):
    torch.manual_seed(3)
    shape = {"dim": 16, "blocks": 1, "length": LENGTH, "dropout": 0.0, "text_dim": 4, "id_capacity": 4}
    return SequenceModel(ModelConfig(num_types=2, repeats=request.param, **shape)).eval()


@pytest.fixture(scope="module")
def items():
    return torch.randn(ITEMS, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def batch():
    """Histories of 1 to 8 events at a steady pace, distinct items, no targets."""
    draw = torch.Generator().manual_seed(2)
    mask = torch.arange(LENGTH) >= LENGTH - 1 - torch.arange(ROWS)[:, None] % LENGTH
    free = torch.tensor([n for n in range(ITEMS) if n not in TARGETS])
    rows = torch.stack([free[torch.randperm(len(free), generator=draw)[:LENGTH]] for _ in range(ROWS)])
    return Batch(
        items=rows.where(mask, 0),
        types=torch.ones(ROWS, LENGTH, dtype=torch.int64) * mask,
        times=(1_700_000_000_000 + PACE * torch.arange(LENGTH)).expand(ROWS, LENGTH) * mask,
        mask=mask,
        targets=torch.full((ROWS, LENGTH), -1).index_fill(1, torch.tensor([LENGTH - 1]), 5),
        weights=torch.ones(ROWS, LENGTH),
    )


def share(model, items, batch):
    history = items[batch.items] * batch.mask.unsqueeze(-1)
    scores = model.next_scores(history, batch.types, batch.times, batch.mask, items, batch.items)
    return torch.log_softmax(scores, 1)[:, TARGETS].logsumexp(1).detach()


def events(batch):
    return [row[mask].tolist() for row, mask in zip(batch.items, batch.mask, strict=True)]


@pytest.mark.parametrize("name", sorted(HISTORY_ATTACKS))
class TestContract:
    def test_says_what_it_is(self, name, model, items, batch):
        assert HISTORY_ATTACKS[name].name == name
        assert len(HISTORY_ATTACKS[name].reference) > 20

    def test_no_history_gets_worse_for_the_attacker_and_most_get_better(self, name, model, items, batch):
        attacked = HISTORY_ATTACKS[name]().attack(model, items, batch, TARGETS, 2)
        gained = share(model, items, attacked) - share(model, items, batch)
        assert (gained > 0).float().mean() > 0.7
        assert (gained > -1e-5).all()

    def test_more_budget_reaches_farther(self, name, model, items, batch):
        one, three = (HISTORY_ATTACKS[name]().attack(model, items, batch, TARGETS, k) for k in (1, 3))
        gained = share(model, items, three) - share(model, items, one)
        assert gained.mean() > 0
        assert (gained > -1e-5).all()

    def test_targets_and_what_the_user_had_are_never_put_in(self, name, model, items, batch):
        attacked = HISTORY_ATTACKS[name]().attack(model, items, batch, TARGETS, 3)
        for row in events(attacked):
            assert not set(row) & set(TARGETS.tolist())
            assert len(set(row)) == len(row)

    def test_the_same_histories_get_the_same_events_alone_or_together(self, name, model, items, batch):
        attack = HISTORY_ATTACKS[name]()
        whole = attack.attack(model, items, batch, TARGETS, 2)
        half = Batch(*(getattr(batch, part)[4:8] for part in Batch.__dataclass_fields__))
        assert torch.equal(attack.attack(model, items, half, TARGETS, 2).items, whole.items[4:8])

    def test_the_model_is_left_alone(self, name, model, items, batch):
        before = {key: weight.clone() for key, weight in model.state_dict().items()}
        HISTORY_ATTACKS[name]().attack(model, items, batch, TARGETS, 1)
        assert all(torch.equal(before[key], weight) for key, weight in model.state_dict().items())
        assert all(weight.grad is None for weight in model.parameters())

    def test_items_in_pieces_give_what_they_give_at_once(self, name, model, items, batch, monkeypatch):
        whole = HISTORY_ATTACKS[name]().attack(model, items, batch, TARGETS, 2)
        monkeypatch.setattr("training.attacks.sequential._EFFECTS_AT_ONCE", ROWS * LENGTH * 7)
        pieces = HISTORY_ATTACKS[name]().attack(model, items, batch, TARGETS, 2)
        assert torch.equal(whole.items, pieces.items)


def test_replace_changes_so_many_events_and_nothing_else(model, items, batch):
    attacked = ReplaceAttack().attack(model, items, batch, TARGETS, 2)
    changed = attacked.items != batch.items
    assert changed.sum(1).max() == 2
    assert not changed[~batch.mask].any()
    assert changed.sum(1)[batch.mask.sum(1) == 1].max() <= 1  # there is no second event to change
    assert torch.equal(attacked.times, batch.times)
    assert torch.equal(attacked.mask, batch.mask)


def test_replace_finds_better_than_chance(model, items, batch):
    attacked = share(model, items, ReplaceAttack(checked=3).attack(model, items, batch, TARGETS, 1))
    rng = np.random.default_rng(0)
    drawn = []
    for _ in range(10):
        rows = batch.items.clone()
        for row in range(ROWS):
            place = rng.choice(np.flatnonzero(batch.mask[row].numpy()))
            rows[row, place] = int(rng.choice(np.setdiff1d(np.arange(ITEMS), TARGETS)))
        drawn.append(share(model, items, Batch(rows, *list(vars(batch).values())[1:])).mean())
    assert attacked.mean() > max(drawn)


@pytest.mark.parametrize("name", sorted(HISTORY_ATTACKS))
def test_where_no_item_is_left_to_take_nothing_changes(name, model, items, batch):
    full = Batch(*(getattr(batch, part)[7:8] for part in Batch.__dataclass_fields__))
    taken = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 8]])
    few = Batch(taken, *list(vars(full).values())[1:])
    attacked = HISTORY_ATTACKS[name]().attack(model, items[:9], few, torch.tensor([7]), 9)
    assert torch.equal(attacked.items, few.items)


@pytest.mark.parametrize("budget", [2, 6])
def test_append_adds_to_the_end_at_the_users_pace(model, items, batch, budget):
    attacked = AppendAttack().attack(model, items, batch, TARGETS, budget)
    added = []
    for before, after in zip(events(batch), events(attacked), strict=True):
        new = [item for item in after if item not in before]
        added.append(len(new))
        assert len(new) <= budget
        assert after == (before + new)[-LENGTH:]
    assert max(added) >= 2
    gaps = torch.diff(attacked.times, dim=1)[attacked.mask[:, 1:] & attacked.mask[:, :-1]]
    assert set(gaps.tolist()) == {PACE, 60_000}  # who had one event has no pace
    assert (attacked.types[attacked.mask] == 1).all()
    assert (attacked.targets[:, -1] == 5).all()  # the next item comes behind what was added
    assert (attacked.targets[:, :-1] == -1).all()


def test_append_to_histories_shorter_than_the_model_reads_makes_them_longer(model, items, batch):
    short = Batch(*(getattr(batch, part)[:, -3:] for part in Batch.__dataclass_fields__))
    assert AppendAttack().attack(model, items, short, TARGETS, 2).items.shape == (ROWS, 5)


def loss_of(model, items, batch):
    def loss(history):
        users = model(history, batch.types, batch.times, batch.mask)[:, -1]
        return fn.cross_entropy(model.scores(users, items), torch.full((ROWS,), 5), reduction="sum")

    return loss


@pytest.mark.parametrize("name", sorted(EMBEDDING_ATTACKS))
def test_representations_move_within_the_ball_and_raise_the_loss(name, model, items, batch):
    attack = EMBEDDING_ATTACKS[name](epsilon=0.2)
    assert attack.name == name
    assert len(attack.reference) > 20
    history = items[batch.items] * batch.mask.unsqueeze(-1)
    loss = loss_of(model, items, batch)
    moved = attack.attack(loss, history)
    norms = history.norm(dim=-1)
    assert ((moved - history).norm(dim=-1) <= 0.2 * norms + 1e-5).all()
    assert not moved[~batch.mask].any()
    noise = fn.normalize(torch.randn(history.shape, generator=torch.Generator().manual_seed(0)), dim=-1)
    assert loss(moved) > loss(history + 0.2 * norms.unsqueeze(-1) * noise)
    assert loss(moved) > loss(history)


def test_more_steps_raise_the_loss_further(model, items, batch):
    history, loss = items[batch.items] * batch.mask.unsqueeze(-1), loss_of(model, items, batch)
    few, many = (loss(EMBEDDING_ATTACKS["pgd"](epsilon=0.5, steps=n).attack(loss, history)) for n in (3, 20))
    assert many > few


@pytest.mark.parametrize(
    ("name", "fields"), [("fgm", {"steps": 2}), ("pgd", {"steps": 0}), ("pgd", {"epsilon": -1})]
)
def test_what_is_no_attack_is_refused(name, fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        EMBEDDING_ATTACKS[name](**fields)
