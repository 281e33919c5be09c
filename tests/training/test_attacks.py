"""Attacks: a contract that all keep, and what makes each the attack it is called."""

from itertools import pairwise

import numpy as np
import pytest

from training.attacks import ATTACKS, Budget, View
from training.data import Sequences

USERS, ITEMS, CATEGORIES = 300, 120, 4
BUDGET = Budget(users=25, start_ms=5_000_000_000, stop_ms=5_086_400_000)
NO_CATEGORIES = np.zeros((0, 2), np.int64)
TARGETS = np.array([100, 104, 108])  # rarely touched, all of category 0


@pytest.fixture(scope="module")
def view() -> View:
    """Users with 5 to 40 events; item n is the rarer the higher n, its category is n modulo 4."""
    rng = np.random.default_rng(7)
    lengths = rng.integers(5, 41, USERS)
    share = 1.0 / (1 + np.arange(ITEMS))
    codes = rng.choice(ITEMS, lengths.sum(), p=share / share.sum())
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    times = np.concatenate([np.cumsum(rng.integers(1, 600_000, length)) for length in lengths])
    hashes = rng.permutation(np.arange(1, ITEMS + 1)).astype(np.uint64)
    sequences = Sequences(
        items=hashes[codes],
        times=times,
        types=np.zeros(len(codes), np.uint8),
        offsets=offsets,
        target_from=np.ones(USERS, np.int64),
        trust=np.ones(USERS, np.float32),
        users=np.arange(USERS, dtype=np.uint64),
    )
    member = np.stack([np.arange(ITEMS), np.arange(ITEMS) % CATEGORIES], axis=1)
    return View(sequences, codes, hashes, member)


def rows(poison):
    offsets = poison.sequences.offsets
    return [poison.codes[a:b] for a, b in pairwise(offsets)]


@pytest.mark.parametrize("name", sorted(ATTACKS))
class TestContract:
    def test_says_what_it_is(self, name, view):
        attack = ATTACKS[name]
        assert attack.name == name
        assert len(attack.reference) > 20
        assert isinstance(attack.promotes, bool)

    def test_the_same_seed_gives_the_same_poison(self, name, view):
        one, two, other = (
            ATTACKS[name]().poison(view, TARGETS, BUDGET, np.random.default_rng(seed)) for seed in (1, 1, 2)
        )
        np.testing.assert_array_equal(one.codes, two.codes)
        np.testing.assert_array_equal(one.sequences.times, two.sequences.times)
        np.testing.assert_array_equal(one.sequences.users, two.sequences.users)
        assert not np.array_equal(one.codes, other.codes)

    def test_spends_its_budget_and_no_more(self, name, view):
        poison = ATTACKS[name]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))
        times, offsets = poison.sequences.times, poison.sequences.offsets
        assert len(poison.sequences) == BUDGET.users
        assert times.min() >= BUDGET.start_ms
        assert times.max() < BUDGET.stop_ms
        assert all((np.diff(times[a:b]) >= 0).all() for a, b in pairwise(offsets))

    def test_fake_users_are_new_and_look_like_users(self, name, view):
        poison = ATTACKS[name]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))
        assert not set(poison.sequences.users) & set(view.sequences.users)
        assert len(set(poison.sequences.users)) == BUDGET.users
        np.testing.assert_array_equal(poison.sequences.items, view.hashes[poison.codes])
        lengths = [len(row) for row in rows(poison)]
        assert view.lengths.min() <= min(lengths)
        assert max(lengths) <= view.lengths.max()
        assert np.mean(lengths) == pytest.approx(view.lengths.mean(), rel=0.3)

    def test_a_fake_user_takes_an_item_once_and_a_target_never_first(self, name, view):
        for row in rows(ATTACKS[name]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))):
            assert len(set(row)) == len(row)
            assert row[0] not in TARGETS

    def test_what_promotes_names_its_targets(self, name, view):
        poison = ATTACKS[name]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))
        named = [len(set(row) & set(TARGETS)) for row in rows(poison)]
        if ATTACKS[name].promotes:
            assert named == [len(TARGETS)] * BUDGET.users

    def test_users_with_one_event_are_no_obstacle(self, name, view):
        offsets = np.arange(len(view.codes) + 1)  # each event a user of its own: no gaps, lengths of one
        count = len(view.codes)
        lonely = Sequences(
            view.sequences.items,
            view.sequences.times,
            view.sequences.types,
            offsets,
            np.ones(count, np.int64),
            np.ones(count, np.float32),
            np.arange(count, dtype=np.uint64),
        )
        seen = View(lonely, view.codes, view.hashes, NO_CATEGORIES)
        for row in rows(ATTACKS[name]().poison(seen, TARGETS, BUDGET, np.random.default_rng(0))):
            assert len(row) >= 1


def company(name, view):
    poison = ATTACKS[name]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))
    return poison.codes[~np.isin(poison.codes, TARGETS)]


def test_average_follows_popularity_and_random_does_not(view):
    assert view.counts[company("average", view)].mean() > 1.5 * view.counts[company("random", view)].mean()


def test_bandwagon_jumps_on_the_most_popular(view):
    popular = np.argsort(-view.counts)[:20]
    in_bandwagon = np.isin(company("bandwagon", view), popular).mean()
    assert in_bandwagon > np.isin(company("random", view), popular).mean()
    for row in rows(ATTACKS["bandwagon"]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))):
        assert np.isin(row, popular).any()


def test_segment_keeps_to_the_targets_category(view):
    assert (company("segment", view) % CATEGORIES == 0).all()


def test_segment_without_categories_takes_what_the_targets_users_had(view):
    blind = View(view.sequences, view.codes, view.hashes, NO_CATEGORIES)
    had = np.flatnonzero(blind.beside(TARGETS))
    assert np.isin(company("segment", blind), had).all()


def test_love_hate_keeps_the_targets_out(view):
    poison = ATTACKS["love-hate"]().poison(view, TARGETS, BUDGET, np.random.default_rng(0))
    assert not np.isin(poison.codes, TARGETS).any()


def test_reverse_bandwagon_puts_the_targets_in_bad_company(view):
    assert view.counts[company("reverse-bandwagon", view)].max() <= np.median(view.counts[view.counts > 0])


@pytest.mark.parametrize(("changes", "named"), [({"users": 0}, "users"), ({"stop_ms": 1}, "stop_ms")])
def test_a_budget_that_buys_nothing_is_refused(changes, named):
    with pytest.raises(ValueError, match=named):
        Budget(**({"users": 1, "start_ms": 10, "stop_ms": 20} | changes))
