"""Who is asked what: nothing that is asked was learned from."""

import numpy as np
import pyarrow as pa
import pytest

from services.datasets import INTERACTIONS, Dataset, DatasetError
from services.evaluation.corpus import leave_one_out, make_corpus, rows_of, sample, temporal, with_cold_items
from tests.services.evaluation.conftest import make_dataset


@pytest.fixture
def corpus(circle):
    return make_corpus(circle)


def test_a_corpus_is_the_stream_user_by_user(circle, corpus):
    assert (len(corpus), len(corpus.sequences), corpus.num_items) == (480, 40, 11)
    event = circle.interactions.slice(int(corpus.arrival[17]), 1).to_pylist()[0]
    assert corpus.item_ids[corpus.codes[17]] == event["item_id"]
    assert corpus.sequences.times[17] == event["timestamp_ms"]
    for row in range(3):
        part = slice(*corpus.sequences.offsets[row : row + 2])
        assert (np.diff(corpus.sequences.times[part]) >= 0).all()
        assert (corpus.rows[part] == row).all()


def test_leave_one_out_asks_for_the_last_event(corpus):
    split = leave_one_out(corpus)
    offsets = corpus.sequences.offsets
    assert split.test.tolist() == (offsets[1:] - 1).tolist()
    assert split.validation.tolist() == (offsets[1:] - 2).tolist()
    assert split.train.sum() == 480 - 80
    assert not split.train[split.test].any()
    assert not split.train[split.validation].any()


def test_users_with_fewer_than_three_events_are_learned_from_and_not_asked():
    corpus = make_corpus(make_dataset(users=5, length=2))
    split = leave_one_out(corpus)
    assert len(split.test) == len(split.validation) == 0
    assert split.train.all()


def test_the_temporal_split_learns_from_nothing_that_came_later(corpus):
    split = temporal(corpus, holdout=0.2)
    times = corpus.sequences.times
    assert times[split.train].max() <= times[split.validation].min()
    assert times[split.validation].max() <= times[split.test].min()
    assert len(split.test) == pytest.approx(0.2 * 480, abs=40)


def test_the_history_of_a_query_is_what_came_before_it(corpus):
    query = np.array([5, 12 + 3])
    seen = corpus.seen(query)
    for which, at in enumerate(query):
        before = corpus.codes[corpus.starts[at] : at]
        assert np.flatnonzero(seen[which]).tolist() == sorted(set(before))


def test_cold_items_are_in_no_training_event_and_are_all_that_is_asked(corpus):
    split = with_cold_items(corpus, leave_one_out(corpus), 0.3, seed=1)
    assert split.cold.sum() == 3
    assert not split.cold[corpus.codes[split.train]].any()
    assert not split.cold[corpus.codes[split.validation]].any()
    assert split.cold[corpus.codes[split.test]].all()
    assert len(split.test) > 0


def test_chosen_events_stay_in_their_order_and_rows(corpus):
    chosen = corpus.arrival < 200
    rows = rows_of(corpus, chosen)
    assert len(rows.items) == 200
    assert np.diff(rows.offsets).tolist() == np.bincount(corpus.rows[chosen], minlength=40).tolist()


def test_a_sample_is_the_same_for_the_same_seed():
    queries = np.arange(100)
    assert sample(queries, 10, 3).tolist() == sample(queries, 10, 3).tolist()
    assert sample(queries, 10, 3).tolist() != sample(queries, 10, 4).tolist()
    assert sample(queries, 100, 3) is queries


def test_items_that_only_events_know_are_ranked_without_text(circle):
    row = pa.table([["u0"], ["stranger"], [1_800_000_000_000], ["view"], [None]], schema=INTERACTIONS)
    corpus = make_corpus(Dataset("more", pa.concat_tables([circle.interactions, row]), circle.items))
    assert corpus.item_ids[-1] == "stranger"
    assert corpus.texts[-1] == ""


def test_an_event_type_that_was_not_named_is_refused(circle):
    with pytest.raises(DatasetError, match=r"event types \['view'\] are not among \['buy'\]"):
        make_corpus(circle, ("buy",))
