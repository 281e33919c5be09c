"""What attacks at serving time do to a model: on a made-up stream, with a made-up text encoder."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from services.evaluation.corpus import make_corpus
from services.evaluation.ours import SequenceScorer
from services.evaluation.poisoned import lists_of
from services.evaluation.probed import (
    SERVING_ATTACKS,
    HistoriesAttacked,
    Means,
    embedding_attacked,
    history_attacked,
    probe,
    text_attacked,
)
from tests.services.evaluation.conftest import make_dataset
from training.attacks import EMBEDDING_ATTACKS, HISTORY_ATTACKS, TEXT_ATTACKS
from training.attacks.sequential import ReplaceAttack
from training.config import ModelConfig
from training.items import ItemTable
from training.model import SequenceModel
from training.text_guard import TextGuard, degrees

DIM = 32


def encode(texts):
    found = np.zeros((len(texts), DIM), np.float32)
    for row, text in enumerate(texts):
        for word in text.lower().replace(",", " ").replace(".", " ").split():
            found[row, zlib.crc32(word.encode()) % DIM] += 1.0
    return found / np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)


@pytest.fixture(scope="module")
def corpus():
    """The circle among 60 items; its ten are the only ones with events."""
    small = make_corpus(make_dataset(users=40, length=8))
    extra = 49
    return replace(
        small,
        item_ids=[*small.item_ids, *(f"x{n}" for n in range(extra))],
        texts=[*small.texts[:-1], *(f"parcel {chr(97 + n % 26)}{n}" for n in range(extra + 1))],
        categories=[*small.categories, *([["odd"]] * extra)],
    )


@pytest.fixture(scope="module")
def table(corpus):
    codes = np.arange(corpus.num_items)
    slots = np.where(codes < 10, codes, -1)
    return ItemTable((codes + 1).astype(np.uint64), slots, encode(corpus.texts), corpus.item_ids)


@pytest.fixture(scope="module")
def model(corpus):
    """Untrained but for where its users look: at what has the words of a station."""
    torch.manual_seed(0)
    shape = {"dim": 16, "blocks": 1, "length": 8, "dropout": 0.0, "text_dim": DIM, "id_capacity": 10}
    return SequenceModel(ModelConfig(num_types=1, **shape)).eval()


@pytest.fixture(scope="module")
def queries(corpus):
    return np.flatnonzero(corpus.has_history & ~corpus.repeats())[-60:]


TARGETS = np.array([20, 33])


@pytest.mark.parametrize("kind", sorted(TEXT_ATTACKS))
def test_a_rewritten_text_changes_the_targets_vectors_alone(corpus, model, table, queries, kind):
    found = text_attacked(corpus, model, table, TARGETS, queries, kind, encode, np.random.default_rng(0))
    assert [told["item"] for told in found["texts"]] == [corpus.item_ids[code] for code in TARGETS]
    after = encode([told["after"] for told in found["texts"]])
    assert found["degrees"] == pytest.approx(degrees(table.text[TARGETS], after).mean())
    by_hand = table.text.copy()
    by_hand[TARGETS] = after
    lists = lists_of(SequenceScorer(corpus, model, replace(table, text=by_hand)), corpus, queries, TARGETS)
    assert found["after"] == lists.figures
    assert found["gain"] == pytest.approx(found["after"]["exposure@10"] - found["before"]["exposure@10"])


def test_who_has_a_copy_of_the_model_gets_further(corpus, model, table, queries):
    asked = (corpus, model, table, TARGETS, queries, "greedy", encode)
    blind, informed = (
        text_attacked(*asked, np.random.default_rng(0), informed=know)["after"]["hr@10"]
        for know in (False, True)
    )
    assert informed >= blind
    assert informed > text_attacked(*asked, np.random.default_rng(0))["before"]["hr@10"]


def test_a_guard_holds_vectors_and_exposure(corpus, model, table, queries):
    asked = (corpus, model, table, TARGETS, queries, "greedy", encode)
    bare = text_attacked(*asked, np.random.default_rng(0))
    held = text_attacked(*asked, np.random.default_rng(0), guard=TextGuard(most_degrees=5.0))
    assert bare["degrees"] > 5.5 > held["degrees"]
    assert held["gain"] < bare["gain"]
    assert (bare["guard"], held["guard"]) == (None, 5.0)


def test_a_guard_cleans_before_the_encoder_reads(corpus, model, table, queries):
    read = []

    def listening(texts):
        read.extend(texts)
        return encode(texts)

    asked = (corpus, model, table, TARGETS, queries, "characters", listening, np.random.default_rng(0))
    text_attacked(*asked, guard=TextGuard())
    assert not any("\u200b" in text for text in read)


@pytest.mark.parametrize("kind", sorted(HISTORY_ATTACKS))
def test_attacked_histories_show_the_targets_and_cost_quality(corpus, model, table, queries, kind):
    target = np.array([25])
    found = history_attacked(corpus, model, table, target, queries, kind, events=3)
    assert found["after"]["hr@50"] >= found["before"]["hr@50"]
    assert found["after"]["exposure@10"] >= found["before"]["exposure@10"]
    assert (
        found["after"]["hr@10"] + found["after"]["hr@50"]
        > found["before"]["hr@10"] + found["before"]["hr@50"]
    )
    assert found["overlap@10"] < 1
    none = history_attacked(corpus, model, table, target, queries, kind, events=0)
    assert none["after"] == none["before"]
    assert none["overlap@10"] == 1


def test_what_an_attack_put_into_a_history_is_not_shown(corpus, model, table, queries):
    class Fixed:
        def attack(self, model, items, batch, targets, budget):
            return replace(batch, items=batch.items.index_fill(1, torch.tensor([-1]), 40))

    scores = HistoriesAttacked(corpus, model, table, Fixed(), TARGETS, 1).scores(queries)
    assert torch.isinf(scores[:, 40]).all()
    assert torch.isfinite(scores[:, 41:]).all()
    assert torch.isfinite(scores[:, :40]).all()  # what the user had is left to who asks


def test_small_batches_answer_as_large_ones(corpus, model, table, queries, monkeypatch):
    attacked = HistoriesAttacked(corpus, model, table, ReplaceAttack(), TARGETS, 1)
    whole = attacked.scores(queries)
    monkeypatch.setattr("services.evaluation.probed._VALUES_AT_ONCE", 7 * (corpus.num_items * 8 + 64 * 8))
    torch.testing.assert_close(attacked.scores(queries), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", sorted(EMBEDDING_ATTACKS))
def test_the_next_item_is_lost_within_the_ball(corpus, model, table, queries, kind):
    near, far = (
        embedding_attacked(corpus, model, table, queries, kind, epsilon=epsilon, steps=4)
        for epsilon in (0.0, 2.0)
    )
    assert near["after"] == near["before"]
    assert far["after"]["ndcg@10"] < far["before"]["ndcg@10"]
    assert far["kept"] == pytest.approx(far["after"]["ndcg@10"] / far["before"]["ndcg@10"])
    assert far["steps"] == (1 if kind == "fgm" else 4)


class Learner:
    """What `probe` needs of a `StreamLearner`."""

    def __init__(self, corpus, model, table):
        self.corpus, self._table = corpus, table
        self.settings = type("Settings", (), {"model": model.config})

    def table(self, upto):
        return self._table

    def revealed(self, upto):
        return self.corpus.arrival < upto


@pytest.mark.parametrize("kind", SERVING_ATTACKS)
def test_a_probe_reports_what_can_be_written_down(corpus, model, table, queries, kind):
    told = []
    asked = (
        Learner(corpus, model, table),
        model.state_dict(),
        200,
        kind,
        TARGETS,
        queries[:20],
        0,
        told.append,
    )
    found = probe(*asked, means=Means(events=1, words=2, steps=2), encode=encode)
    assert json.loads(json.dumps(found)) == found
    assert found["kind"] == kind
    assert kind in told[0]
    assert ("guarded" in found) == ("untouched" in found) == (kind in TEXT_ATTACKS)
    assert found == probe(*asked, means=Means(events=1, words=2, steps=2), encode=encode)


def test_targets_are_also_probed_as_if_nobody_had_touched_them(corpus, model, table, queries):
    known = np.array([3])  # has an id, which its text must speak against
    asked = (Learner(corpus, model, table), model.state_dict(), 200, "greedy", known, queries, 0, print)
    found = probe(*asked, encode=encode)
    slots = table.slots.copy()
    slots[known] = -1
    blank = replace(table, slots=slots)
    rng = np.random.default_rng(0)
    by_hand = text_attacked(
        corpus, model, blank, known, queries, "greedy", encode, rng, known=corpus.arrival < 200
    )
    assert found["untouched"]["after"] == by_hand["after"]
    assert found["untouched"]["before"] != found["before"]
    assert found["untouched"]["guarded"]["degrees"] <= found["untouched"]["guarded"]["guard"] + 0.1


def test_an_unknown_kind_is_refused(corpus, model, table, queries):
    with pytest.raises(ValueError, match="greedy"):
        probe(Learner(corpus, model, table), {}, 200, "magic", TARGETS, queries, 0, print)
