"""Attacks that learn: company that passes for real, and company that a surrogate says will do harm."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from training.attacks import ATTACKS, Budget, View
from training.attacks.generated import GanAttack, with_targets
from training.attacks.optimised import OptimisedAttack, OptimisedSettings, Surrogate
from training.data import Sequences
from training.gan import GanSettings
from training.variety import NONE, newest

USERS, ITEMS, TASTES = 300, 90, 3
BUDGET = Budget(users=40, start_ms=5_000_000_000, stop_ms=5_086_400_000)
TARGETS = np.array([84, 87])  # rarely had, and by users of taste 0 only
QUICK = OptimisedSettings(
    dim=16, window=15, fit_steps=150, passes=40, audience=200, rounds=15, exchanged=8, shown=5
)
PAIR = GanSettings(
    length=15, dim=16, hidden=32, warmup_steps=60, steps=20, refining_steps=40, passes=20, checks=2
)


@pytest.fixture(scope="module")
def view():
    """Users with 8 to 16 events of one taste: item n belongs to taste n modulo 3, a rarer one the higher n."""
    random = np.random.default_rng(3)
    lengths = random.integers(8, 17, USERS)
    share = 1.0 / (5 + np.arange(ITEMS // TASTES))
    drawn = [random.choice(ITEMS // TASTES, n, replace=False, p=share / share.sum()) for n in lengths]
    codes = np.concatenate([own * TASTES + user % TASTES for user, own in enumerate(drawn)])
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    hashes = random.permutation(np.arange(1, ITEMS + 1)).astype(np.uint64)
    sequences = Sequences(
        items=hashes[codes],
        times=np.arange(len(codes)) * 60_000,
        types=np.zeros(len(codes), np.uint8),
        offsets=offsets,
        target_from=np.ones(USERS, np.int64),
        trust=np.ones(USERS, np.float32),
        users=np.arange(USERS, dtype=np.uint64),
    )
    return View(sequences, codes, hashes, np.zeros((0, 2), np.int64))


def rows(poison):
    return [poison.codes[a:b] for a, b in pairwise(poison.sequences.offsets)]


def poisoned(attack, view, seed=0):
    return attack.poison(view, TARGETS, BUDGET, np.random.default_rng(seed))


def of_one_taste(profiles):
    """Share of company that is of its user's commonest taste."""
    found = [np.bincount(row[~np.isin(row, TARGETS)] % TASTES, minlength=TASTES) for row in profiles]
    return sum(count.max() for count in found) / sum(count.sum() for count in found)


def exposure(view, poison):
    """Share of honest users and targets where a model that learned from all of them ranks it among the first ten.

    Another surrogate than the attacker's: it learns everything from scratch, from first weights of its own.
    """
    offsets = view.sequences.offsets
    codes = np.concatenate([view.codes, poison.codes])
    ends = np.concatenate([offsets, offsets[-1] + poison.sequences.offsets[1:]])
    counts = np.bincount(codes, minlength=ITEMS).astype(np.float64)
    model = Surrogate(newest(codes, ends, 15), np.arange(ITEMS), counts, QUICK, seed=99)
    histories = torch.from_numpy(newest(view.codes, offsets, 15))
    newest_at = (histories >= 0).sum(dim=1) - 1
    scores = model.scores(model.contexts(histories)[torch.arange(USERS), newest_at])
    ahead = (scores[:, :, None] > scores[:, None, TARGETS]).sum(dim=1)
    return float((ahead < 10).float().mean())


def test_both_are_registered():
    assert ATTACKS["gan"] is GanAttack
    assert ATTACKS["optimised"] is OptimisedAttack


def test_targets_are_put_among_company_that_keeps_its_order():
    company = np.array([5, 3, 9, 1])
    profiles = [with_targets(company, TARGETS, np.random.default_rng(seed)) for seed in range(20)]
    for profile in profiles:
        np.testing.assert_array_equal(profile[~np.isin(profile, TARGETS)], company)
        assert profile[0] == 5
    assert len({tuple(profile) for profile in profiles}) > 10


@pytest.fixture(scope="module")
def generated(view):
    return rows(poisoned(GanAttack(settings=PAIR), view))


def test_generated_company_keeps_to_one_taste_and_random_company_does_not(view, generated):
    assert of_one_taste(generated) > of_one_taste(rows(poisoned(ATTACKS["random"](), view))) + 0.15


def test_generated_users_are_varied(generated):
    assert len({tuple(row) for row in generated}) == BUDGET.users
    assert len(set(np.concatenate(generated))) > ITEMS / 2


@pytest.mark.parametrize(("attack", "settings"), [(GanAttack, PAIR), (OptimisedAttack, QUICK)])
def test_company_is_drawn_from_the_most_frequent_items(attack, settings, view):
    few = attack(settings=replace(settings, items=40))
    frequent = np.argsort(-view.counts, kind="stable")[:40]
    for row in rows(poisoned(few, view)):
        assert np.isin(row[~np.isin(row, TARGETS)], frequent).all()


def test_the_surrogate_learns_who_has_what(view):
    histories = newest(view.codes, view.sequences.offsets, 15)
    model = Surrogate(histories, np.arange(ITEMS), view.counts, QUICK, seed=0)
    own = torch.arange(USERS) % TASTES
    contexts = model.contexts(torch.from_numpy(histories))[:, 7]  # everybody has eight
    best = model.scores(contexts).topk(5, dim=1).indices % TASTES
    assert (best == own[:, None]).float().mean() > 0.9


def test_a_context_forgets_and_passes_over_what_is_not_there(view):
    model = Surrogate(np.array([[0, 1, NONE], [2, 0, 1]]), np.arange(3), np.ones(3), QUICK, seed=0)
    after = model.contexts(torch.tensor([[0, 1, NONE]]))[0]
    torch.testing.assert_close(after[0], model.p[0])
    torch.testing.assert_close(after[1], (QUICK.decay * model.p[0] + model.p[1]) / (1 + QUICK.decay))


def test_the_search_beats_where_it_began_and_random_company(view):
    """Measured on a model of its own that learns from honest and fake users alike."""
    searched, begun, random = (
        np.mean([exposure(view, poisoned(attack, view, seed)) for seed in range(2)])
        for attack in (
            OptimisedAttack(settings=QUICK),
            OptimisedAttack(settings=replace(QUICK, rounds=0)),
            ATTACKS["random"](),
        )
    )
    assert searched > 1.25 * begun
    assert searched > 1.5 * random


def test_optimised_company_is_in_order_to_be_learned_from(view):
    """Every target has company before it that honest users have, so that something predicts it."""
    for row in rows(poisoned(OptimisedAttack(settings=QUICK), view)):
        places = np.flatnonzero(np.isin(row, TARGETS))
        assert places.min() > 0
        assert view.counts[row[: places.min()]].min() > 0


@pytest.mark.parametrize("changes", [{"decay": 0}, {"decay": 1.2}, {"items": 0}, {"unrolled": 0}])
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        OptimisedSettings(**changes)
