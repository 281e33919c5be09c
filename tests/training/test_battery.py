"""A candidate that shows what nobody asks for, or that is easier to push, does not pass."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.training.test_gate import CONFIG, GATE, TABLE, N, an_exam, contender, ring
from training.battery import TOP, Battery, pushed, run_battery, stability, targets_of
from training.config import AdversarialConfig
from training.data import cut, make_batch
from training.gate import Exam, judge, make_exam
from training.losses import Objective
from training.model import SequenceModel

TEXT = np.random.default_rng(1).normal(size=(N, 4)).astype(np.float32)
WORDED = replace(TABLE, text=TEXT / np.linalg.norm(TEXT, axis=1, keepdims=True))


def learned(seed: int, *, by_text: bool = False, unlucky: int | None = None) -> SequenceModel:
    """A model of the ring, from ids or from texts; one that names an item to everybody, if asked for."""
    torch.manual_seed(seed)
    model = SequenceModel(CONFIG)
    task, sequences = Objective(model, AdversarialConfig(enabled=False)).train(), ring(60, seed=1)
    batch = make_batch(sequences, WORDED.rows_of(sequences.items), cut(sequences, 6))
    if unlucky is not None:
        batch = replace(batch, targets=batch.targets.where(batch.targets < 0, unlucky))
    optimiser = torch.optim.Adam(task.parameters(), lr=0.02)
    slots = torch.full((N,), -1) if by_text else torch.from_numpy(WORDED.slots)
    for _ in range(40):
        optimiser.zero_grad()
        task(batch, torch.from_numpy(WORDED.text), slots)[0].div(300).backward()
        optimiser.step()
    return model.eval()


@pytest.fixture(scope="module")
def exam() -> Exam:
    """Of users who walk on the ring; item 19 is the least popular and nobody walks there."""
    popularity = np.linspace(1, 0.1, N).astype(np.float32)
    sequences = ring(80, seed=9)
    last = sequences.items != TABLE.hashes[N - 1]
    keep = np.flatnonzero(np.bitwise_and.reduceat(last, sequences.offsets[:-1]))
    return make_exam(sequences.take(keep), WORDED, popularity, GATE, length=6, name="w")


@pytest.fixture(scope="module")
def good() -> SequenceModel:
    return learned(0)


def test_the_battery_is_the_same_for_the_same_exam(exam: Exam, good: SequenceModel) -> None:
    one, two = run_battery(contender(good), exam), run_battery(contender(good), exam)
    assert one.exposure == two.exposure
    assert np.array_equal(one.top, two.top)
    assert one.top.shape == (len(exam.chunks), TOP)
    assert one.shown.sum() == pytest.approx(TOP)
    assert stability(one, two) == 1.0
    rare = np.argsort(exam.popularity)[: N // 2]
    assert np.isin(targets_of(exam), rare).all()


def test_words_move_a_model_that_lives_by_text_and_no_other(exam: Exam) -> None:
    by_text = replace(contender(learned(0, by_text=True)), slots=np.full(N, -1))
    found = run_battery(by_text, exam).exposure
    assert found["reworded"] != found["clean"]
    deaf = learned(0)
    deaf.text_projection.weight.data.zero_()
    found = run_battery(contender(deaf), exam).exposure
    assert found["reworded"] == found["clean"]


def test_an_item_that_everybody_is_shown_and_nobody_wants_is_pushed(exam: Exam) -> None:
    shown = np.full(N, 0.4)
    before, now = shown.copy(), shown.copy()
    before[N - 1], now[N - 1] = 0.0, 1.0
    now[3] = 1.0  # is asked for
    top = np.zeros((len(exam.chunks), TOP), np.int64)
    found = pushed(Battery(now, top, {}), Battery(before, top, {}), exam, hit_rate=0.9, most=0.1)
    assert [(row, was, is_) for row, was, is_, _ in found] == [(N - 1, 0.0, 1.0)]
    assert found[0][3] == 0
    assert not pushed(Battery(before, top, {}), Battery(before, top, {}), exam, 0.9, 0.1)
    few = before.copy()
    few[N - 1] = 0.3
    assert not pushed(Battery(few, top, {}), Battery(before, top, {}), exam, 0.001, 0.1)  # chance explains it
    assert pushed(Battery(now, top, {}), Battery(before, top, {}), exam, 0.001, 0.1)  # but not all users


def test_a_candidate_that_pushes_is_rejected(exam: Exam, good: SequenceModel) -> None:
    lenient = GATE.model_copy(update={"ndcg_tolerance": 0.99, "attacked_ndcg_tolerance": 0.99})
    verdict = judge(contender(good), contender(good, "v0001"), exam, lenient)
    assert verdict.promote
    assert verdict.numbers["stability"] == 1.0
    assert verdict.numbers["candidate"]["exposure_lift"] >= 0
    numbers = dict(verdict.numbers)
    assert numbers["pushed"] == []


def test_a_candidate_that_gives_way_more_is_rejected(exam: Exam, good: SequenceModel) -> None:
    strict = GATE.model_copy(
        update={
            "ndcg_tolerance": 0.99,
            "attacked_ndcg_tolerance": 0.99,
            "lift_tolerance": 0.0,
            "min_overlap": 0.0,
        }
    )
    weak = replace(contender(learned(0, by_text=True)), slots=np.full(N, -1))
    strong = contender(good, "v0001")
    lifts = [run_battery(one, exam).lift for one in (weak, strong)]
    worse, better = (weak, strong) if lifts[0] > lifts[1] else (strong, weak)
    verdict = judge(worse, better, exam, strict.model_copy(update={"push_tolerance": 1.0}))
    if verdict.numbers["candidate"]["ndcg@10"] >= 0.01 * verdict.numbers["incumbent"]["ndcg@10"]:
        assert not verdict.promote
        assert "easier to manipulate" in verdict.reason


def test_lists_that_share_nothing_are_rejected(exam: Exam, good: SequenceModel) -> None:
    lenient = GATE.model_copy(
        update={
            "ndcg_tolerance": 0.99,
            "attacked_ndcg_tolerance": 0.99,
            "lift_tolerance": 1.0,
            "push_tolerance": 1.0,
            "min_overlap": 1.0,
        }
    )
    verdict = judge(contender(learned(5)), contender(good, "v0001"), exam, lenient)
    assert not verdict.promote
    assert "in common" in verdict.reason


def test_an_exam_without_texts_has_no_targets() -> None:
    assert len(targets_of(an_exam())) == 0
