"""Defences against none: what the table says follows from the runs, and the runs are made once."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from services.cli import app
from services.datasets import write_dataset
from services.evaluation.corpus import make_corpus
from services.evaluation.groups import Grouping, by_group, compared, disparity, groupings, head_share
from services.evaluation.ranking import Answers
from services.evaluation.robustness import ALL, NONE, Plan, reduction, summary, with_defence
from tests.services.evaluation.conftest import make_dataset
from training.config import InfluenceConfig, TrainingSettings


def poisoned(clean: float, after: float, **more: object) -> dict:
    lists = {"exposure@10": clean, "hr@10": clean, "hr@50": clean, "ndcg@10": 0.1}
    return {
        "clean": lists,
        "poisoned": {**lists, "exposure@10": after, "hr@50": after},
        "overlap@10": 0.8,
        **more,
    }


def a_run(variant: str, seed: int, after: float, text: float, ndcg: float, pgd: float, cost: float) -> dict:
    detector = {
        "auc": 0.97,
        "caught": 1.0,
        "precision": 0.9,
        "false_quarantine": 0.01,
        "false_quarantine_power": 0.0,
    }
    return {
        "variant": variant,
        "seed": seed,
        "clean": {"ndcg@10": ndcg, "hr@10": ndcg},
        "pgd": {"after": {"ndcg@10": pgd}},
        "texts": {"prefix": {"untouched": {"gain": 0.5, "guarded": {"gain": text}}}},
        "poison": {"bandwagon": poisoned(0.01, after, **({"detector": detector} if variant != NONE else {}))},
        "false_quarantine": 0.002 if variant != NONE else None,
        "step_cost": cost if variant != NONE else None,
        "groups": {"activity": {"few": {"queries": 90, "ndcg@10": ndcg, "hr@10": ndcg}}},
        "head_share": 0.5,
    }


def test_the_headline_by_hand() -> None:
    runs = [
        a_run(NONE, 0, 0.11, 0.4, 0.10, 0.05, 1.0),
        a_run(ALL, 0, 0.02, 0.1, 0.11, 0.07, 2.0),
        a_run(NONE, 1, 0.21, 0.4, 0.10, 0.05, 1.0),
        a_run(ALL, 1, 0.01, 0.3, 0.09, 0.05, 2.0),
    ]
    plan = Plan(seeds=(0, 1), kinds=("bandwagon",), texts=("prefix",))
    found = summary(runs, ALL, plan)
    assert found["exposure_lift_reduction"]["bandwagon"] == pytest.approx(1 - 0.01 / 0.3)
    assert found["text_lift_reduction"] == pytest.approx(1 - 0.4 / 1.0)  # guarded against bare
    assert found["clean_ndcg_change"] == pytest.approx(0.0)
    assert found["pgd_ndcg_change"] == pytest.approx(0.2)
    assert found["step_cost_ratio"] == pytest.approx(2.0)
    assert (found["detector_auc"], found["false_quarantine"]) == (pytest.approx(0.97), pytest.approx(0.002))
    low, high = found["exposure_lift_reduction_ci"]
    assert low <= found["exposure_lift_reduction_mean"] <= high
    assert found["fairness"]["warnings"] == []


def test_an_attack_that_gains_nothing_has_no_reduction() -> None:
    assert reduction(np.array([[0.0, 0.0]])) is None
    assert reduction(np.array([[0.3, 0.2]])) == pytest.approx(-0.5)  # worse with the defence


def test_each_defence_is_switched_alone() -> None:
    settings = TrainingSettings(influence=InfluenceConfig(enabled=False))
    on = {
        name: (found.adversarial.enabled, found.trust.enabled, found.influence.enabled)
        for name in ("none", "adversarial", "trust", "influence", "all")
        for found in [with_defence(settings, name)]
    }
    assert on == {
        "none": (False, False, False),
        "adversarial": (True, False, False),
        "trust": (False, True, False),
        "influence": (False, False, True),
        "all": (True, True, False),
    }
    capped = settings.model_copy(update={"influence": InfluenceConfig(enabled=True)})
    assert with_defence(capped, ALL).influence.enabled
    assert with_defence(settings, ALL).adversarial.start_step == 0
    with pytest.raises(ValueError, match="adversarial"):
        with_defence(settings, "magic")


def test_groups_and_who_is_hurt() -> None:
    corpus = make_corpus(make_dataset(users=80, length=8))
    queries = np.flatnonzero(corpus.has_history)
    known = corpus.arrival < len(corpus) // 2
    found = groupings(corpus, queries, known)
    for grouping in found.values():
        assert len(grouping.labels) == len(queries)
        assert grouping.labels.max() < len(grouping.names)
    others = groupings(corpus, queries[::3], known)  # of other people, with other lengths of history
    assert found["activity of the user"].names == others["activity of the user"].names
    answers = Answers(
        queries, np.where(np.arange(len(queries)) % 2, 1.0, 99.0), np.zeros((len(queries), 10), int)
    )
    halves = {"half": Grouping(["bad", "good"], np.arange(len(queries)) % 2)}
    report = by_group(answers, halves)
    assert (report["half"]["bad"]["ndcg@10"], report["half"]["good"]["ndcg@10"]) == (0.0, 1.0)
    assert disparity(report["half"]) == 0.0
    worse = {"half": {**report["half"], "good": {**report["half"]["good"], "ndcg@10": 0.9}}}
    told = compared([report], [worse])["warnings"]
    assert len(told) == 1
    assert "half, good" in told[0]
    assert "-10.0%" in told[0]
    assert head_share(np.zeros((3, 10), int), corpus, np.ones(len(corpus), bool)) in (0.0, 1.0)


SMALL = [
    "training.model.dim=16",
    "training.model.length=8",
    "training.initial_epochs=4",
    "training.window_lr=0.01",
    "training.trust.simulations=1",
]


def test_a_table_from_the_command_line_is_made_once(tmp_path) -> None:
    write_dataset(make_dataset(users=120, length=8), tmp_path / "circle")
    changes = [part for change in SMALL for part in ("--set", change)]
    chosen = ["--seeds", "0", "--kinds", "bandwagon", "--texts", "prefix", "--size", "0.2", "--targets", "2"]
    chosen += [
        "--defences",
        "trust,all",
        "--cache",
        str(tmp_path / "cache"),
        "--report",
        str(tmp_path / "r.json"),
    ]
    command = ["robustness", "--dataset", str(tmp_path / "circle"), *chosen, *changes]
    result = CliRunner().invoke(app, command, catch_exceptions=False, env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert set(report["summary"]) == {"trust", "all"}
    assert set(report["exposure_lift_reduction"]) == {"bandwagon"}
    assert {run["variant"] for run in report["runs"]} == {"none", "trust", "all"}
    assert report["step_cost_ratio"] > 1
    assert "NDCG@10 under PGD" in result.output
    again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert "taken from the last run" in " ".join(again.output.split())
    assert json.loads((tmp_path / "r.json").read_text())["runs"] == report["runs"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--kinds", "magic"], "bandwagon"),
        (["--texts", "magic"], "prefix"),
        (["--defences", "magic"], "adversarial"),
        (["--seeds", "x"], "0,1,2"),
        (["--set", "training.finetune=full"], "training.finetune"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, arguments, named) -> None:
    result = CliRunner().invoke(app, ["robustness", "--dataset", str(tmp_path), *arguments])
    assert result.exit_code == 2
    assert named in result.output
