"""The scoring of the replay against a ten-line oracle, and the report's small parts."""

from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.client import Answer, Values
from services.datasets import INTERACTIONS, ITEMS, Dataset
from services.prequential import Popularity, Prequential


def dataset_of(events: list[tuple[str, str]]) -> Dataset:
    users, items = zip(*events, strict=True)
    count = len(events)
    table = pa.table([users, items, range(count), ["view"] * count, [None] * count], schema=INTERACTIONS)
    names = sorted(set(items))
    catalogue = pa.table([names, names, [""] * len(names), [[]] * len(names)], schema=ITEMS)
    return Dataset("made-up", table, catalogue)


def answer(*items: str, trained: bool = True) -> Answer:
    return Answer(list(items), trained, "v1", None, None, 0.0)


def oracle_rank(events: list[tuple[str, str]], row: int, exclude_seen: bool) -> int | None:
    user, item = events[row]
    seen = {i for u, i in events[:row] if u == user} if exclude_seen else set()
    counts = Counter(i for _, i in events[:row])
    first = {i: n for n, (_, i) in reversed(list(enumerate(events)))}
    ranking = sorted((i for i in counts if i not in seen), key=lambda i: (-counts[i], first[i]))
    return ranking.index(item) if item in ranking else None


EVENTS = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("uvwxyz")), min_size=1, max_size=40)


@settings(deadline=None)
@given(EVENTS, st.booleans(), st.integers(0, 40))
def test_popularity_ranks_like_the_oracle(
    events: list[tuple[str, str]], exclude_seen: bool, history: int
) -> None:
    popularity = Popularity(dataset_of(events), exclude_seen)
    history = min(history, len(events))
    popularity.sent(0, history)
    for row in range(history, len(events)):
        assert popularity.rank(row) == oracle_rank(events, row, exclude_seen)
        popularity.sent_one(row)


def test_hits_and_gains_of_both_sides() -> None:
    score = Prequential(k=3)
    score.score("x", answer("a", "x", "b"), popular_rank=0)  # second: 1/log2(3)
    score.score("x", answer("a", "b", "c", "x"), popular_rank=3)  # neither in the top 3
    totals = score.totals()
    assert (totals.requests, totals.hit_rate, totals.popularity_hit_rate) == (2, 0.5, 0.5)
    assert totals.ndcg == pytest.approx(0.63093 / 2, abs=1e-5)
    assert totals.popularity_ndcg == pytest.approx(0.5)


def test_only_a_trained_model_is_scored() -> None:
    score = Prequential()
    score.score("x", answer("x", trained=False), popular_rank=0)
    score.score("x", None, popular_rank=0)
    score.skip()
    totals = score.totals()
    assert (totals.requests, totals.untrained, totals.failed, totals.skipped) == (0, 1, 1, 1)
    assert totals.hit_rate is None


def test_the_recent_rate_forgets() -> None:
    score = Prequential(window=2)
    for item in ("x", "y", "y"):
        score.score("x", answer(item), popular_rank=None)
    assert score.totals().hit_rate == pytest.approx(1 / 3, abs=1e-6)
    assert score.totals().recent_hit_rate == 0.0


def test_percentiles_are_exact() -> None:
    values = Values()
    assert values.percentiles().p50 is None
    for value in range(101):
        values.add(float(value))
    assert values.percentiles().p50 == 50.0
    assert values.percentiles().p99 == 99.0
