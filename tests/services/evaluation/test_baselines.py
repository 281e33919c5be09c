"""Baselines against answers worked out by hand, and on a stream that only some can learn."""

import numpy as np
import pytest

from services.datasets import Dataset
from services.evaluation import baselines
from services.evaluation.corpus import leave_one_out, make_corpus
from services.evaluation.ranking import ask, by_history, figures
from services.evaluation.sasrec import SasrecBaseline, SasrecSettings
from tests.services.evaluation.conftest import make_dataset
from training.metrics import hit_rate, ndcg


@pytest.fixture
def corpus(circle):
    return make_corpus(circle)


@pytest.fixture
def split(corpus):
    return leave_one_out(corpus)


def test_popular_counts_training_events_only(corpus, split):
    popular = baselines.Popular()
    popular.fit(corpus, split)
    counts = [int((corpus.codes[split.train] == item).sum()) for item in range(corpus.num_items)]
    assert popular.scores(split.test[:1])[0].tolist() == counts


def test_recent_popular_halves_what_is_a_half_life_old(corpus, split):
    recent = baselines.RecentPopular(unseen=False)
    recent.HALF_LIVES_DAYS = (3000 / 86_400_000,)  # three events of a user
    recent.fit(corpus, split)
    times = corpus.sequences.times[split.train]
    weights = 0.5 ** ((times.max() - times) / 3000)
    expected = [weights[corpus.codes[split.train] == item].sum() for item in range(corpus.num_items)]
    np.testing.assert_allclose(recent.scores(split.test[:1])[0], expected, rtol=1e-5)


def test_user_popular_prefers_what_the_user_had(corpus, split):
    own = baselines.UserPopular(unseen=False)
    own.fit(corpus, split)
    query = split.test[:1]
    scores = own.scores(query)[0].numpy()
    seen = corpus.seen(query)[0]
    assert scores[seen].min() > scores[~seen].max()


def test_neighbours_are_the_shrunk_cosine_of_user_sets(corpus, split):
    knn = baselines.ItemKnn(unseen=False)
    knn.fit(corpus, split)
    users = [set(corpus.rows[split.train & (corpus.codes == item)].tolist()) for item in range(3)]
    common = len(users[0] & users[2])
    expected = common / ((len(users[0]) * len(users[2])) ** 0.5 + knn.SHRINKAGE)
    assert knn._similar[0, 2] == pytest.approx(expected, rel=1e-5)
    assert knn._similar[0, 0] == 0


def test_where_users_repeat_themselves_an_item_is_its_own_neighbour():
    faithful = make_dataset(users=10)
    users = faithful.interactions["user_id"].to_pylist()
    own = [f"i{int(user[1:])}" for user in users]  # each user takes one item again and again
    repeated = faithful.interactions.set_column(1, "item_id", [own])
    corpus = make_corpus(Dataset("faithful", repeated, faithful.items))
    split = leave_one_out(corpus)
    knn = baselines.ItemKnn(unseen=False)
    knn.fit(corpus, split)
    assert knn.settings["itself"] == 1.0
    assert ndcg(ask(knn, corpus, split.test, unseen=False).ranks) == 1.0


def test_categories_stand_in_for_events(corpus, split):
    by_category = baselines.CategoryPopular()
    by_category.fit(corpus, split)
    scores = by_category.scores(split.test[:1])[0].numpy()
    even = (corpus.codes[split.train] % 2 == 0).sum()
    odd = split.train.sum() - even
    assert scores[0] / scores[1] == pytest.approx(even / odd, rel=1e-3)
    assert scores[10] < 1e-3  # no category
    assert len(set(scores)) == len(scores)  # ties are broken, or none of them could be a hit


def test_the_categories_of_a_user_come_first(corpus, split):
    own = baselines.UserCategories(unseen=False)
    own.fit(corpus, split)
    scores = own.scores(split.test)
    of_category = scores[:, :10].numpy().reshape(len(split.test), 5, 2).mean(axis=1)  # even, odd
    query, at = corpus.histories(split.test)
    weights = own.settings["decay"] ** (split.test[query] - 1 - at)
    even = corpus.codes[at] % 2 == 0
    share = np.bincount(query[even], weights[even]) / np.bincount(query, weights)
    np.testing.assert_allclose(of_category, np.stack([share, 1 - share], axis=1), atol=1e-3)


def test_sasrec_learns_what_follows_what(corpus, split):
    settings = SasrecSettings(dim=16, length=12, epochs=60, lr=1e-2, patience=60, dropout=0.0)
    sasrec = SasrecBaseline(settings, unseen=False)
    sasrec.fit(corpus, split)
    ranks = ask(sasrec, corpus, split.test, unseen=False).ranks
    popular = baselines.Popular()
    popular.fit(corpus, split)
    assert ndcg(ranks) > 0.9
    assert ndcg(ask(popular, corpus, split.test, unseen=False).ranks) < 0.6


def test_the_two_readings(corpus, split):
    """With twelve events round a circle of ten, the last item is always one the user had."""
    popular = baselines.Popular()
    popular.fit(corpus, split)
    assert len(ask(popular, corpus, split.test, unseen=True).ranks) == 0
    asked = ask(popular, corpus, split.test, unseen=False)
    assert len(asked.ranks) == 40
    assert asked.top.shape == (40, 10)
    early = corpus.sequences.offsets[:-1] + 4
    unseen = ask(popular, corpus, early, unseen=True)
    seen = corpus.seen(unseen.queries)
    assert not np.take_along_axis(seen, unseen.top[:, :5], axis=1).any()


def test_figures_name_segments_and_intervals(corpus, split):
    popular = baselines.Popular()
    popular.fit(corpus, split)
    answers = ask(popular, corpus, split.test, unseen=False)
    found = figures(answers, corpus, split, resamples=50)
    assert found["hr@10"] == hit_rate(answers.ranks)
    assert found["ndcg@10_ci"][0] <= found["ndcg@10"] <= found["ndcg@10_ci"][1]
    assert sum(part["queries"] for name, part in found["segments"].items() if "items" in name) == 40
    assert by_history(answers, corpus) == [
        {"from": 10, "queries": 40, "hr@10": found["hr@10"], "ndcg@10": found["ndcg@10"]}
    ]
