"""An attack on a stream, from the choice of targets to what is reported."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from services.cli import app
from services.datasets import DatasetError, write_dataset
from services.evaluation.corpus import make_corpus
from services.evaluation.poisoned import Scenario, by_window, choose_targets, lists_of, overlap
from tests.services.evaluation.conftest import make_dataset
from training.trust.screening import Screen


class Fixed:
    """Shows everybody the items in the order of their codes, or backwards."""

    def __init__(self, corpus, backwards=False):
        self._scores = torch.arange(corpus.num_items).float() * (1 if backwards else -1)

    def scores(self, queries):
        return self._scores.expand(len(queries), -1)


@pytest.fixture(scope="module")
def corpus():
    return make_corpus(make_dataset(users=40, length=8))


def test_targets_come_from_the_tail_or_the_head(corpus):
    known = np.ones(len(corpus), bool)
    known[corpus.codes == 3] = False  # nobody had it
    known[np.flatnonzero(corpus.codes == 4)[1:]] = False  # one had it
    rng = np.random.default_rng(0)
    assert choose_targets(corpus, known, Scenario(targets=1), rng)[0] != 3
    tail = choose_targets(corpus, known, Scenario(targets=2), rng)
    assert 4 in tail
    assert 4 not in choose_targets(corpus, known, Scenario(targets=1, popular=True), rng)
    with pytest.raises(DatasetError, match="ask for fewer"):
        choose_targets(corpus, known, Scenario(targets=9), rng)


def test_exposure_counts_places_and_leaves_out_who_had_the_target(corpus):
    queries = np.flatnonzero(corpus.has_history)[:50]
    targets = np.array([0, 10])  # code 10 has no events, so nobody had it
    seen = corpus.seen(queries)[:, 0]
    first = lists_of(Fixed(corpus), corpus, queries, targets)
    # of eleven items the last one is among ten as soon as the user had one of the others
    assert first.figures["hr@10"] == 1.0
    assert first.figures["exposure@10"] == pytest.approx(((~seen).sum() + len(queries)) / (10 * len(queries)))
    assert first.top.shape == (len(queries), 10)


def test_overlap_is_the_share_of_common_items():
    one = np.array([[1, 2, 3, 4], [1, 2, 3, 4]])
    assert overlap(one, one[:, ::-1]) == 1.0
    assert overlap(one, np.array([[1, 2, 8, 9], [5, 6, 7, 8]])) == 0.25


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("attack")
    write_dataset(make_dataset(users=120, length=8), path / "circle")
    return path


SMALL = [
    "training.model.dim=16",
    "training.model.length=8",
    "training.initial_epochs=6",
    "training.adversarial.enabled=false",
    "training.window_lr=0.01",
]


def run(folder, *arguments, code=0):
    changes = [part for change in SMALL for part in ("--set", change)]
    common = ["attack", "run", "--dataset", folder / "circle", "--cache", folder / "cache", *changes]
    done = CliRunner().invoke(app, [str(part) for part in [*common, *arguments]])
    assert done.exit_code == code, done.output
    return done.output


def test_an_attack_from_the_command_line(folder):
    attack = ["--kind", "segment", "--size", "30%", "--targets", "2", "--out", folder / "out.json"]
    run(folder, *attack)
    report = json.loads((folder / "out.json").read_text())
    assert report["fake_users"] == 36
    assert len(report["target_items"]) == 2
    for model in ("before", "clean", "poisoned"):
        assert set(report[model]) == {"hr@10", "hr@50", "exposure@10", "ndcg@10"}
    assert 0 <= report["overlap@10"] <= 1
    assert report["gain"] == pytest.approx(
        report["poisoned"]["exposure@10"] - report["clean"]["exposure@10"], abs=1e-12
    )
    again = run(folder, *attack)
    assert "taken from the last run" in " ".join(again.split())
    assert json.loads((folder / "out.json").read_text()) == report


def test_attacks_on_a_model_that_stays_as_it_is(folder):
    for kind in ("append", "pgd"):
        run(folder, "--kind", kind, "--targets", "2", "--out", folder / "served.json")
        report = json.loads((folder / "served.json").read_text())
        assert report["kind"] == kind
        assert report["after"]["ndcg@10"] <= report["before"]["ndcg@10"] + 0.05


def test_a_training_from_scratch_is_attacked_too(folder):
    kept = {}
    for trust in ("true", "false"):
        out = folder / f"scratch-{trust}.json"
        run(
            folder,
            *("--scratch", "--size", "30%", "--targets", "2", "--out"),
            out,
            "--set",
            f"training.trust.enabled={trust}",
        )
        kept[trust] = json.loads(out.read_text())
        assert kept[trust]["scratch"]
    assert "detector" in kept["true"]
    assert "detector" not in kept["false"]


def test_whole_histories_get_the_trust_that_their_window_earned(corpus):
    rows = corpus.sequences
    window = rows.take(np.array([7, 3, 5]))
    found = Screen(np.array([0.0, 0.5, 1.0], np.float32), np.zeros(3), np.zeros(0, np.int64), [])
    trusted = by_window(rows, window, found)
    assert len(trusted) == len(rows) - 1
    assert window.users[0] not in trusted.users
    assert trusted.trust[trusted.users == window.users[1]].tolist() == [0.5]
    assert trusted.trust[~np.isin(trusted.users, window.users)].min() == 1.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--kind", "magic"], "bandwagon"),
        (["--size", "many"], "1%"),
        (["--set", "serving.k=1"], "training."),
        (["--set", "training.finetune=full"], "training.finetune"),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, named):
    assert named in run(folder, *arguments, code=2)


def test_the_attacks_are_listed():
    listed = CliRunner().invoke(app, ["attack", "list"], env={"COLUMNS": "200"}).output
    assert "bandwagon" in listed
    for name in ("targets down", "append", "greedy", "pgd"):
        assert name in listed
