"""The generative pair: what it draws, what screening and hard negatives are worth, and collapse that is noticed."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from training.gan import GanSettings, fit_gan
from training.variety import NONE, newest, variety

USERS, ITEMS, TASTES = 300, 60, 3
SETTINGS = GanSettings(
    length=12, dim=16, hidden=32, warmup_steps=60, steps=30, refining_steps=60, passes=20, checks=2
)


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture(scope="module")
def stream():
    """Users with 8 to 16 events of one taste: item n belongs to taste n modulo 3, a rarer one the higher n."""
    random = rng(3)
    lengths = random.integers(8, 17, USERS)
    share = 1.0 / (5 + np.arange(ITEMS // TASTES))
    drawn = [random.choice(ITEMS // TASTES, n, replace=False, p=share / share.sum()) for n in lengths]
    codes = np.concatenate([own * TASTES + user % TASTES for user, own in enumerate(drawn)])
    return codes, np.concatenate([[0], np.cumsum(lengths)])


@pytest.fixture(scope="module")
def gan(stream):
    return fit_gan(*stream, SETTINGS, seed=1)


def of_one_taste(histories):
    """Share of events that are of their history's commonest taste."""
    counts = np.stack(
        [((histories % TASTES == taste) & (histories != NONE)).sum(axis=1) for taste in range(TASTES)]
    )
    return counts.max(axis=0).sum() / counts.sum()


class TestNewest:
    def test_keeps_the_newest_and_an_item_where_it_came_last(self):
        histories = newest(np.array([5, 6, 5, 7, 1, 1]), np.array([0, 4, 4, 6]), 2)
        np.testing.assert_array_equal(histories, [[5, 7], [NONE, NONE], [1, NONE]])

    def test_reads_rows_in_order(self):
        np.testing.assert_array_equal(newest(np.array([3, 1, 2]), np.array([0, 3]), 4), [[3, 1, 2, NONE]])


class TestHistories:
    def test_the_same_seed_gives_the_same_pair(self, stream, gan):
        other = fit_gan(*stream, SETTINGS, seed=1)
        lengths = np.array([3, 9, 5])
        np.testing.assert_array_equal(gan.histories(lengths, rng()), other.histories(lengths, rng()))
        assert gan.checks == other.checks
        changed = fit_gan(*stream, SETTINGS, seed=2).histories(np.full(50, 9), rng())
        assert not np.array_equal(gan.histories(np.full(50, 9), rng()), changed)

    def test_training_leaves_the_global_generator_alone(self, stream):
        torch.manual_seed(5)
        expected = torch.rand(1)
        torch.manual_seed(5)
        fit_gan(*stream, replace(SETTINGS, warmup_steps=1, steps=1))
        assert torch.equal(torch.rand(1), expected)

    def test_are_as_long_as_asked_without_repeats_or_barred_items(self, gan):
        lengths = np.array([2, 20, 1, 7])
        drawn = gan.histories(lengths, rng(), without=np.array([0, 1]))
        for row, length in zip(drawn, lengths, strict=True):
            assert (row[:length] != NONE).all()
            assert (row[length:] == NONE).all()
            assert len(set(row[:length])) == length
            assert not {0, 1} & set(row)

    def test_keep_to_one_taste_as_real_users_do(self, gan):
        drawn = gan.histories(np.full(200, 10), rng())
        assert of_one_taste(drawn) > 0.75  # by chance: about a half
        assert not gan.variety.collapsed

    @pytest.mark.parametrize("length", [0, ITEMS + 1])
    def test_of_no_possible_length_are_refused(self, gan, length):
        with pytest.raises(ValueError, match=f"from 1 to {ITEMS}"):
            gan.histories(np.array([3, length]), rng())

    def test_can_name_only_frequent_items_and_those_given(self, stream):
        few = fit_gan(*stream, replace(SETTINGS, items=10, warmup_steps=2, steps=1), items=np.array([59, 75]))
        assert len(few.items) == 12
        assert {59, 75} <= set(few.items)
        assert set(few.histories(np.full(20, 6), rng()).ravel()) <= set(few.items)

    def test_nothing_to_learn_from_is_refused(self):
        with pytest.raises(ValueError, match="two histories of two items; got 1"):
            fit_gan(np.array([1, 2, 3]), np.array([0, 2, 3]))


class TestScreening:
    def test_the_discriminator_prefers_real_histories_to_mixed_up_ones(self, stream, gan):
        real = newest(*stream, 10)
        mixed = np.stack([rng(row).choice(ITEMS, 10, replace=False) for row in range(USERS)])
        assert gan.realness(real).mean() > gan.realness(mixed).mean()

    def test_keeps_what_is_held_to_be_more_real(self, gan):
        lengths = np.full(100, 10)
        plain, screened = gan.histories(lengths, rng()), gan.screened(lengths, rng())
        assert gan.realness(screened).mean() > gan.realness(plain).mean() + gan.realness(plain).std() / 2
        assert of_one_taste(screened) >= of_one_taste(plain)
        assert not variety(screened, plain).collapsed

    def test_keeping_all_is_no_screening(self, gan):
        lengths = np.array([4, 8])
        np.testing.assert_array_equal(gan.screened(lengths, rng(), share=1), gan.histories(lengths, rng()))


class TestHardNegatives:
    def test_are_likely_and_wrong(self, stream, gan):
        histories = newest(*stream, 8)
        following = histories[:, 7].copy()
        histories[:, 7] = NONE
        negatives = gan.hard_negatives(histories, following, 3, rng())
        assert negatives.shape == (USERS, 3)
        for row, history, own in zip(negatives, histories, following, strict=True):
            assert len(set(row)) == 3
            assert not set(row) & {*history, own}
        likely = (negatives % TASTES == following[:, None] % TASTES).mean()
        assert (
            likely > 0.6
        )  # by chance less than a third: the history's own items are of its taste and left out

    def test_more_than_are_left_are_refused(self, gan):
        with pytest.raises(ValueError, match=f"from 1 to {ITEMS - 3}"):
            gan.hard_negatives(np.array([[0, 1]]), np.array([2]), ITEMS, rng())


class TestCollapse:
    def test_real_histories_have_not_collapsed(self, stream):
        real = newest(*stream, 10)
        found = variety(real[: USERS // 2], real[USERS // 2 :])
        assert not found.collapsed
        assert found.distinct == pytest.approx(1, abs=0.05)
        assert found.entropy == pytest.approx(1, abs=0.05)
        assert found.divergence < 0.05

    def test_one_history_for_everybody_has(self, stream):
        real = newest(*stream, 10)
        found = variety(np.repeat(real[:1], USERS, axis=0), real)
        assert found.collapsed
        assert found.overlap == pytest.approx(1)

    def test_few_items_in_many_orders_have(self, stream):
        few = np.stack([rng(row).choice(12, 10, replace=False) for row in range(USERS)])
        assert variety(few, newest(*stream, 10)).collapsed

    def test_nothing_in_common_diverges_by_one_bit(self):
        assert variety(np.array([[0, 1], [1, 0]]), np.array([[2, 3], [3, 2]])).divergence == pytest.approx(1)

    def test_a_generator_that_collapses_is_stopped_and_taken_back(self, stream):
        """A rate far too high and nothing that holds it to real histories: every user gets the same items."""
        wild = replace(SETTINGS, generator_rate=1.0, likelihood=0.0, steps=60, checks=6)
        gan = fit_gan(*stream, wild, seed=1)
        assert [check.collapsed for check in gan.checks[-2:]] == [True, True]
        assert len(gan.checks) < 7
        assert not gan.variety.collapsed
        drawn = gan.histories(np.full(100, 10), rng())
        assert not variety(drawn, newest(*stream, 10)).collapsed

    def test_one_history_is_no_comparison(self):
        with pytest.raises(ValueError, match="two histories on either side"):
            variety(np.array([[1, 2]]), np.array([[1, 2], [2, 3]]))


@pytest.mark.parametrize(
    "changes", [{"share": 0}, {"share": 1.5}, {"length": 1}, {"steps": -1}, {"cold": 0}, {"items": 0}]
)
def test_settings_that_cannot_be_are_refused(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        GanSettings(**changes)
