"""An index over a large catalogue: found nearly as by scoring all, and never what may not be shown."""

import json

import numpy as np
import pytest

from serving.approximate import ApproximateIndex
from serving.index import NOTHING, ExactIndex, Wanted
from serving.items import ItemTable
from tests.serving.world import World, event
from training.item_index import FILE, write_index

N, DIM = 4000, 16


def clustered(count, seed):
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(40, DIM))
    vectors = centres[rng.integers(40, size=count)] + 0.6 * rng.normal(size=(count, DIM))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def catalogue(tmp_path_factory):
    """4,000 items of which the index holds all but the last hundred."""
    vectors = clustered(N, 0)
    hashes = np.sort(np.random.default_rng(1).integers(1, 2**63, N, dtype=np.uint64) * np.uint64(2))
    folder = tmp_path_factory.mktemp("bundle")
    held = np.arange(N) < N - 100
    recall = write_index(folder, vectors[held], hashes[held], from_items=1000)
    table = ItemTable(hashes, [str(h) for h in hashes], [""] * N, np.ones(N, bool), NOTHING, NOTHING)
    return folder / FILE, vectors, table, held, recall


def both(catalogue, eligible):
    path, vectors, table, held, _ = catalogue
    found = ApproximateIndex(path, vectors, eligible, table, held, 4.0)
    return found, ExactIndex(vectors, eligible, 4.0)


def by_index(approximate, queries, wanted):
    """Few at a time: more together are scored exactly."""
    pairs = [slice(start, start + 2) for start in range(0, len(queries), 2)]
    return [found for pair in pairs for found in approximate.search(queries[pair], wanted[pair])]


def test_the_best_hundred_are_found_but_for_two(catalogue):
    *_, recall = catalogue
    assert recall >= 0.98
    approximate, exact = both(catalogue, np.ones(N, bool))
    queries = clustered(200, 7)
    wanted = [Wanted(100, NOTHING)] * len(queries)
    hits = []
    for (rows, scores), (best, true) in zip(
        by_index(approximate, queries, wanted), exact.search(queries, wanted), strict=True
    ):
        hits.append(len(np.intersect1d(rows, best)) / 100)
        assert (np.diff(scores) <= 0).all()
        assert scores[0] == pytest.approx(true[0], abs=1e-3)
    assert 0.98 <= np.mean(hits) < 1  # the index did it


def test_queries_that_come_together_are_scored_exactly(catalogue):
    approximate, exact = both(catalogue, np.arange(N) % 3 != 0)
    queries = clustered(16, 11)
    wanted = [Wanted(100, np.arange(50))] * 15 + [Wanted(5, NOTHING, among=np.arange(40))]
    for (rows, scores), (best, true) in zip(
        approximate.search(queries, wanted), exact.search(queries, wanted), strict=True
    ):
        assert np.array_equal(rows, best)
        assert np.array_equal(scores, true)


def test_what_may_not_be_shown_is_not_and_what_is_new_is(catalogue):
    eligible = np.arange(N) % 3 != 0
    approximate, exact = both(catalogue, eligible)
    queries = clustered(20, 8)
    excluded = exact.search(queries, [Wanted(30, NOTHING)] * 20)[0][0]
    fresh = N - 50 + (eligible[N - 50] == 0)
    queries[0] = approximate._vectors[fresh]
    for query, (rows, _) in zip(
        queries, by_index(approximate, queries, [Wanted(10, excluded)] * 20), strict=True
    ):
        assert len(rows) == 10
        assert eligible[rows].all()
        assert not np.isin(rows, excluded).any()
        assert query is not queries[0] or fresh in rows
    allowed = np.zeros(N, bool)
    allowed[:300] = True
    narrow = [Wanted(10, NOTHING, allowed=allowed), Wanted(5, NOTHING, among=np.arange(40))] * 10
    assert all(
        np.array_equal(a[0], b[0])
        for a, b in zip(by_index(approximate, queries, narrow), exact.search(queries, narrow), strict=True)
    )


def test_a_rule_lifts_what_the_index_would_not_have_found(catalogue):
    approximate, _ = both(catalogue, np.ones(N, bool))
    query = clustered(1, 9)
    far = int(np.argmin(query @ approximate._vectors.T))
    offsets = np.zeros(N, np.float32)
    offsets[far] = 20
    [(rows, _)] = approximate.search(query, [Wanted(3, NOTHING, offsets=offsets)])
    assert rows[0] == far


def test_nearly_everything_excluded_is_searched_one_by_one(catalogue):
    approximate, _ = both(catalogue, np.ones(N, bool))
    query = clustered(1, 10)
    excluded = np.setdiff1d(np.arange(N), [5, 1500, 3990])
    assert sorted(approximate.search(query, [Wanted(10, excluded)])[0][0]) == [5, 1500, 3990]
    assert len(approximate.search(query, [Wanted(N, NOTHING)])[0][0]) == N


def test_items_without_groups_get_no_index(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(2000, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    assert write_index(tmp_path, vectors, np.arange(2000, dtype=np.uint64), from_items=1000) is None
    assert not (tmp_path / FILE).exists()


def test_a_bundle_carries_its_index_and_is_refused_without(tmp_path, monkeypatch):
    world = World(tmp_path)
    world.publish(*({"item_id": f"i{n}", "title": f"Kind {n % 40}"} for n in range(1200)))
    world.happen(event("anna", "i1", 0), event("anna", "i2", 1))
    path = world.train("v1", known=("i1", "i2"), index_items=1000)
    assert json.loads((path / "config.json").read_text())["index"]["recall@100"] >= 0.98
    recommender = world.recommender()
    assert isinstance(recommender._snapshot.index, ApproximateIndex)
    indexed = recommender.recommend("anna", k=10)
    world.elsewhere("publish", {"item_id": "fresh", "title": "Fresh"}, {"item_id": "i9", "deleted": True})
    assert recommender.refresher.refresh()
    everything = [item.item_id for item in recommender.recommend("anna", k=100).items]
    assert "i9" not in everything
    recommender.stop()
    monkeypatch.setattr("serving.snapshot._FRESH", 0.0)
    recommender = world.recommender()
    assert isinstance(recommender._snapshot.index, ExactIndex)
    exact = [item.item_id for item in recommender.recommend("anna", k=10).items]
    assert len({*exact} & {item.item_id for item in indexed.items}) >= 9
    recommender.stop()
    (path / FILE).unlink()
    recommender = world.recommender()
    assert recommender.model_state().version is None
    recommender.stop()
