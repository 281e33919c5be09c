import numpy as np
import pytest
import torch

from tests.training.synthetic import window_table
from training.config import AdversarialConfig, GateConfig, ModelConfig
from training.data import Sequences, cut, from_window, make_batch
from training.gate import Contender, Exam, judge, make_exam, scorable
from training.items import ItemTable
from training.losses import Objective
from training.model import SequenceModel

N = 20
CONFIG = ModelConfig(
    dim=16,
    blocks=1,
    heads=2,
    length=6,
    dropout=0.0,
    text_dim=4,
    id_capacity=N + 1,
    num_types=2,
    repeats="plain",
)
GATE = GateConfig(min_targets=5, max_targets=500, unseen_only=False)
TABLE = ItemTable(np.arange(1, N + 1, dtype=np.uint64), np.arange(N), np.zeros((N, 4), np.float32), ["x"] * N)


def ring(users: int, seed: int) -> Sequences:
    starts = np.random.default_rng(seed).integers(N, size=users)
    return from_window(window_table([{"items": [int((s + i) % N) + 1 for i in range(6)]} for s in starts]))


def an_exam(config: GateConfig = GATE) -> Exam:
    popularity = np.random.default_rng(0).random(N).astype(np.float32)
    return make_exam(ring(30, seed=9), TABLE, popularity, config, length=6, name="w")


@pytest.fixture(scope="module")
def trained() -> SequenceModel:
    torch.manual_seed(0)
    model = SequenceModel(CONFIG)
    task, sequences = Objective(model, AdversarialConfig(enabled=False)).train(), ring(60, seed=1)
    batch = make_batch(sequences, TABLE.rows_of(sequences.items), cut(sequences, 6))
    optimiser = torch.optim.Adam(task.parameters(), lr=0.02)
    for _ in range(40):
        optimiser.zero_grad()
        task(batch, torch.from_numpy(TABLE.text), torch.from_numpy(TABLE.slots))[0].div(300).backward()
        optimiser.step()
    return model.eval()


def contender(model: SequenceModel, version: str = "v0002") -> Contender:
    return Contender(version, model, TABLE.slots)


def broken(model: SequenceModel, value: float) -> SequenceModel:
    copy = SequenceModel(CONFIG)
    copy.load_state_dict(model.state_dict())
    copy.blocks[0].query_key_value.weight.data.mul_(value)  # type: ignore[union-attr,operator]
    copy.id_embedding.weight.data = (
        copy.id_embedding.weight.data.flip(0) if value == 1.0 else copy.id_embedding.weight
    )
    return copy


def test_a_first_model_must_beat_popularity(trained: SequenceModel) -> None:
    good = judge(contender(trained), None, an_exam(), GATE)
    assert good.promote
    assert good.numbers["candidate"]["ndcg@10"] > 0.8
    torch.manual_seed(3)
    untrained = judge(
        contender(SequenceModel(CONFIG)), None, an_exam(), GateConfig(min_gain_over_popularity=1.0)
    )
    assert not untrained.promote
    assert "no better than popularity" in untrained.reason


def test_an_equal_candidate_is_promoted(trained: SequenceModel) -> None:
    verdict = judge(contender(trained), contender(trained, "v0001"), an_exam(), GATE)
    assert verdict.promote
    assert verdict.numbers["exam"]["targets"] == 150


def test_a_broken_candidate_is_rejected_with_the_reason(trained: SequenceModel) -> None:
    verdict = judge(contender(broken(trained, 1.0)), contender(trained, "v0001"), an_exam(), GATE)
    assert not verdict.promote
    assert "NDCG@10" in verdict.reason
    assert "v0001" in verdict.reason
    assert verdict.numbers["candidate"]["ndcg@10"] < verdict.numbers["incumbent"]["ndcg@10"]


def test_a_candidate_of_nan_is_rejected_even_without_incumbent(trained: SequenceModel) -> None:
    verdict = judge(contender(broken(trained, float("nan"))), None, an_exam(), GATE)
    assert not verdict.promote
    assert "not finite: blocks.0" in verdict.reason


def test_a_candidate_that_is_only_easier_to_attack_is_rejected(
    trained: SequenceModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(contender: Contender, exam: Exam, config: GateConfig) -> dict[str, float]:
        attacked = 0.4 if contender.version == "v0001" else 0.3
        return {"ndcg@10": 0.5, "hit_rate@10": 0.8, "attacked_ndcg@10": attacked}

    monkeypatch.setattr("training.gate._measure", measured)
    verdict = judge(contender(trained), contender(trained, "v0001"), an_exam(), GATE)
    assert not verdict.promote
    assert verdict.reason == "NDCG@10 under PGD 0.3000 is below 0.3600 (v0001 has 0.4000, tolerance 10%)"


def test_a_harsher_attack_hurts_more_and_leaves_the_clean_numbers(trained: SequenceModel) -> None:
    exam = an_exam()
    attacked = judge(contender(trained), contender(trained), exam, GATE).numbers["candidate"]
    assert attacked["attacked_ndcg@10"] < attacked["ndcg@10"]
    gentle, harsh = GATE, GATE.model_copy(update={"pgd_epsilon": 0.5})
    numbers = [
        judge(contender(trained), None, exam, config).numbers["candidate"] for config in (gentle, harsh)
    ]
    assert numbers[0]["ndcg@10"] == numbers[1]["ndcg@10"]
    assert numbers[1]["attacked_ndcg@10"] < numbers[0]["attacked_ndcg@10"]


def test_unseen_only_scores_first_sights_against_unseen_items() -> None:
    sequences = from_window(window_table([{"items": [1, 2, 1, 3], "target_from": 1}]))
    assert scorable(sequences, unseen_only=True).tolist() == [False, True, False, True]
    assert scorable(sequences, unseen_only=False).tolist() == [False, True, True, True]
    popularity = np.zeros(N, np.float32)
    popularity[[0, 1]] = 1.0  # items 1 and 2 lead, but a user who has them is not offered them
    popularity[2] = 0.5
    config = GateConfig(min_targets=1)
    exam = make_exam(sequences, TABLE, popularity, config, length=6, name="w")
    numbers = judge(contender(SequenceModel(CONFIG)), None, exam, config).numbers
    assert exam.targets == 2
    assert numbers["popularity"]["mrr@10"] == 1.0


def test_an_exam_is_bounded_and_repeatable() -> None:
    config = GATE.model_copy(update={"max_targets": 20})
    first, second = an_exam(config), an_exam(config)
    assert 20 <= first.targets < 26
    assert np.array_equal(first.chunks.start, second.chunks.start)
