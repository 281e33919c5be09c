"""The command, from a dataset folder to a report; and training that is taken up where it was cut off."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from services.cli import app
from services.datasets import write_dataset
from services.evaluation.corpus import leave_one_out, make_corpus
from services.evaluation.ours import fitted_settings, make_table
from tests.training.tiny_text import DIM, tiny_bert
from training.config import ModelConfig, TrainingSettings
from training.errors import LearnerError
from training.offline import Trainer

SMALL = [
    "training.model.repeats=plain",
    "training.model.dim=16",
    "training.model.length=4",
    "training.model.dropout=0",
    "training.initial_epochs=25",
    "training.lr=0.02",
    "training.adversarial.enabled=false",
    "training.precision=fp32",
    "sasrec.dim=16",
    "sasrec.length=12",
    "sasrec.epochs=3",
]


@pytest.fixture
def folder(circle, tmp_path):
    write_dataset(circle, tmp_path / "circle")
    return tmp_path / "circle"


def run(*arguments, code=0):
    changes = [part for change in SMALL for part in ("--set", change)]
    result = CliRunner().invoke(app, ["evaluate", *map(str, arguments), *changes])
    assert result.exit_code == code, result.output
    return result.output


@pytest.mark.parametrize("protocol", ["loo", "temporal"])
def test_a_report_compares_models(folder, tmp_path, protocol):
    out, image = tmp_path / "out.json", tmp_path / "plot.png"
    output = run(
        "--dataset", folder, "--protocol", protocol, "--models", "ours,sasrec,popular,item-knn", "--repeats",
        "--out", out, "--plot", image, "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert "NDCG@10" in output
    report = json.loads(out.read_text())
    assert (report["dataset"], report["protocol"], report["seed"]) == ("circle", protocol, 0)
    assert set(report["models"]) == {"ours", "sasrec", "popular", "item-knn"}
    ours, popular = report["models"]["ours"], report["models"]["popular"]
    assert ours["ndcg@10"] > 0.9 > popular["ndcg@10"]
    assert {f"{name}@{k}" for name in ("hr", "ndcg", "mrr") for k in (5, 10, 20)} <= ours.keys()
    assert ours["all"]["ndcg@10"] == ours["ndcg@10"]
    assert image.read_bytes().startswith(b"\x89PNG")


def test_prequential_compares_ways_to_learn(folder, tmp_path):
    out = tmp_path / "out.json"
    run(
        "--dataset", folder, "--protocol", "prequential", "--windows", 6, "--repeats", "--out", out,
        "--cache", tmp_path / "cache",
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert set(report["models"]) == {"static", "retrained", "continuous"}
    assert len(report["curve"]) == 6
    assert report["models"]["static"]["train_seconds_after_first"] == 0
    assert report["models"]["continuous"]["train_seconds_after_first"] > 0
    assert report["curve"][0]["static"] == report["curve"][0]["continuous"]  # nothing was revealed yet


def test_cold_items_are_served_from_their_text(folder, tmp_path):
    out = tmp_path / "out.json"
    run(
        "--dataset", folder, "--protocol", "loo", "--models", "random", "--cold", 0.3, "--repeats", "--out", out
    )  # fmt: skip
    report = json.loads(out.read_text())
    assert report["split"]["cold_items"] == 3
    assert report["models"]["random"]["hr@5"] == 1.0  # among three


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--protocol", "random"], "--protocol: expected one of loo, temporal, prequential"),
        (["--models", "ours,magic"], "--models: expected some of ours"),
        (["--set", "training.model.dims=3"], "training.model.dims"),
        (["--set", "serving.k=3"], "names begin with training. or sasrec."),
    ],
)
def test_wrong_arguments_are_named(folder, arguments, message):
    output = run("--dataset", folder, *arguments, code=2)
    assert message.split(".")[-1] in output.replace("\n", " ")


def test_a_dataset_with_nothing_to_ask_is_refused(tmp_path):
    from tests.services.evaluation.conftest import make_dataset

    write_dataset(make_dataset(users=5, length=2), tmp_path / "short")
    assert "users need three events" in run(
        "--dataset", tmp_path / "short", "--protocol", "loo", "--models", "popular", code=2
    ).replace("\n", " ")


def test_a_fit_that_was_cut_off_is_taken_up_again(circle, tmp_path):
    corpus = make_corpus(circle)
    split = leave_one_out(corpus)
    base = TrainingSettings(model=ModelConfig(dim=16, length=12, dropout=0.0), precision="fp32")
    text = np.random.default_rng(0).normal(size=(corpus.num_items, 8)).astype(np.float32)
    settings = fitted_settings(base, corpus, 8)
    table = make_table(corpus, text, split.train)
    rows, keep = split.training_rows(corpus), tmp_path / "fit.pt"
    whole = Trainer(settings).fit(rows, table, epochs=4, lr=1e-2)

    calls = []

    def cut_at_the_third(model, table):
        calls.append(model)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return float(len(calls))

    with pytest.raises(KeyboardInterrupt):
        Trainer(settings).fit(rows, table, epochs=4, lr=1e-2, keep=keep, validate=cut_at_the_third)
    again = Trainer(settings).fit(rows, table, epochs=4, lr=1e-2, keep=keep, validate=cut_at_the_third)
    assert [epoch for epoch, _ in again.curve] == [1, 2, 3, 4]
    assert again.epoch == 4
    assert not keep.exists()
    for name, weight in whole.weights.items():
        assert torch.allclose(weight, again.weights[name], atol=1e-5), name


def test_the_text_encoder_is_trained_with_the_rest(circle, tmp_path):
    """Only texts tell the items apart; vectors of the best epoch come with its weights."""
    corpus = make_corpus(circle)
    base = TrainingSettings(
        model=ModelConfig(dim=16, length=12, dropout=0.0),
        precision="fp32",
        text_encoder=tiny_bert(tmp_path / "bert"),
        finetune="full",
        encoder_lr=1e-3,
        lr=1e-2,
    )
    split = leave_one_out(corpus)
    settings = fitted_settings(base, corpus, DIM)
    table = make_table(corpus, np.zeros((corpus.num_items, DIM), np.float32), split.train)
    trainer = Trainer(settings, texts=corpus.texts)
    before = trainer.tower.encode(corpus.texts)
    found = trainer.fit(split.training_rows(corpus), table, epochs=3, lr=1e-2, keep=tmp_path / "fit.pt")
    after = trainer.tower.encode(corpus.texts)
    assert not np.allclose(before, after)
    assert np.allclose(found.table.text, after, atol=1e-6)
    assert np.allclose(found.table.text[-1], 0)  # it has no text
    with pytest.raises(LearnerError, match="needs the texts"):
        Trainer(settings)
