"""The page of results says what the files say."""

import json

from tests.bench.results import FOLDER, PAGE, page


def report(seed, ndcg, **more):
    figures = {"hr@10": 0.3, "mrr@10": 0.1, "coverage@10": 0.5, "gini@10": 0.8, "novelty@10": 9.0}
    made = {
        "dataset": "shop",
        "protocol": "temporal",
        "filter": "unseen",
        "seed": seed,
        "machine": {"cpu": "a processor"},
        "threads": 1,
        "command": f"headrace evaluate --seed {seed}",
        "models": {name: figures | {"ndcg@10": value} for name, value in ndcg.items()},
    }
    for found in made["models"].values():
        found["unseen"] = dict(found)
    return made | more


def test_seeds_are_averaged_and_the_best_baseline_is_named(tmp_path):
    (tmp_path / "temporal").mkdir()
    runs = [(0, {"ours": 0.2, "sasrec": 0.1, "popular": 0.05}), (1, {"ours": 0.4, "sasrec": 0.2})]
    for seed, ndcg in runs:
        (tmp_path / "temporal" / f"shop-{seed}.json").write_text(json.dumps(report(seed, ndcg)))
    made = page(tmp_path)
    assert "### shop, temporal, seeds 0, 1" in made
    assert "| ours, repeats excluded | 0.3000 (0.2000 – 0.4000) |" in made
    assert "Ours against the best baseline, sasrec: +100.0% NDCG@10." in made
    assert "headrace evaluate --seed 1" in made


def test_continuous_learning_is_compared_with_retraining(tmp_path):
    (tmp_path / "prequential").mkdir()
    ways = {"static": 0.1, "retrained": 0.2, "continuous": 0.3}
    made = report(0, ways, protocol="prequential")
    for way, seconds in (("static", 0.0), ("retrained", 200.0), ("continuous", 30.0)):
        made["models"][way]["train_seconds_after_first"] = seconds
    made["curve"] = [
        {"window": at} | {way: {"ndcg@10": value + at / 100} for way, value in ways.items()}
        for at in range(7)
    ]
    (tmp_path / "prequential" / "shop.json").write_text(json.dumps(made))
    assert "| continuous | 0.3000 | 0.3000 | 0.3500 | 15% |" in page(tmp_path)


def test_the_page_in_the_documentation_is_up_to_date():
    assert PAGE.read_text() == page(FOLDER), "run `make results`"
