"""The table of attacks and defences: the same model with and without them, over seeds, attacks and targets.

Every run begins from the same clean model of its seed (`poisoned.clean_model`), so what differs is what the newest
window was learned with. Attacks arrive in that window; texts are attacked, and histories perturbed, on the
model that learned the honest window. Runs are kept by their settings: a table cut short goes on where it was.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from services.evaluation import poisoned
from services.evaluation.corpus import Corpus
from services.evaluation.cost import step_cost
from services.evaluation.groups import by_group, compared, groupings, head_share
from services.evaluation.poisoned import Scenario, Stage
from services.evaluation.probed import Means, probe
from services.evaluation.ranking import ask
from training.config import AdversarialConfig, TrainingSettings
from training.metrics import hit_rate, ndcg
from training.text_guard import TextGuard

NONE, ALL = "none", "all"
VARIANTS = (NONE, "adversarial", "trust", "influence", "gan", ALL)
POISON = ("bandwagon", "segment", "gan", "optimised")
TEXTS = ("keywords", "greedy")
_RESAMPLED = 2000


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        seeds: of models, targets and fake users. kinds, texts: attacks on the stream, and on texts.
        variants: defences, each against `NONE`; `ALL` is the headline. size, targets, popular: see `Scenario`.
        pgd: radius and steps of the attack on representations that models are examined with.
    """

    seeds: Sequence[int] = (0, 1, 2)
    kinds: Sequence[str] = POISON
    texts: Sequence[str] = TEXTS
    variants: Sequence[str] = (NONE, ALL)
    size: float = 0.01
    targets: int = 5
    popular: bool = False
    pgd: tuple[float, int] = (0.1, 3)
    words: int = 5


def with_defence(settings: TrainingSettings, name: str) -> TrainingSettings:
    """Settings with one defence switched on as they describe it, all of them, or none.

    Raises:
        ValueError: the name is unknown.
    """
    if name not in VARIANTS:
        raise ValueError(f"expected a defence of {', '.join(VARIANTS)}; got {name!r}")

    def on(part: str) -> bool:
        # In the headline, what is off by default is on where the settings have it on.
        optional = {"influence": settings.influence.enabled, "gan": settings.gan.enabled}
        return name == part or (name == ALL and optional.get(part, True))

    adversarial = settings.adversarial.model_copy(update={"start_step": 0})
    changes = {
        "adversarial": adversarial.model_copy(update={"enabled": True})
        if on("adversarial")
        else AdversarialConfig(enabled=False),
        "trust": settings.trust.model_copy(update={"enabled": on("trust")}),
        "influence": settings.influence.model_copy(update={"enabled": on("influence")}),
        "gan": settings.gan.model_copy(update={"enabled": on("gan")}),
    }
    return settings.model_copy(update=changes)


def measure(
    corpus: Corpus, settings: TrainingSettings, plan: Plan, cache: Path, tell: Callable[[str], None]
) -> dict[str, Any]:
    """Run the plan; see `summary` for the headline.

    Returns:
        ``runs``: per variant and seed the figures of the model after an honest window (``clean``), under PGD, under
        attacks on texts, and of every poisoned window; ``summary``: per variant against `NONE`.
    """
    runs = []
    for seed in plan.seeds:
        for variant in plan.variants:
            tell(f"seed {seed}, defences: {variant}")
            runs.append(_run(corpus, settings, plan, seed, variant, cache, tell))
    report = {"dataset": corpus.name, "seeds": list(plan.seeds), "plan": vars(plan), "runs": runs}
    report["summary"] = {
        variant: summary(runs, variant, plan) for variant in plan.variants if variant != NONE
    }
    return report


def _run(
    corpus: Corpus,
    settings: TrainingSettings,
    plan: Plan,
    seed: int,
    variant: str,
    cache: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    scenario = Scenario(size=plan.size, targets=plan.targets, popular=plan.popular, seed=seed)
    bare, settings = (with_defence(settings, name) for name in (NONE, variant))
    stage = Stage(corpus, settings, scenario, cache, tell)
    honest = stage.honest()
    answers = ask(
        stage.learner.scorer(honest.weights, stage.learner.table(stage.high)),
        corpus,
        stage.queries,
        unseen=True,
    )
    found: dict[str, Any] = {
        "variant": variant,
        "seed": seed,
        "clean": {"ndcg@10": ndcg(answers.ranks), "hr@10": hit_rate(answers.ranks)},
        "groups": by_group(answers, groupings(corpus, stage.queries, corpus.arrival < stage.low)),
        "head_share": head_share(answers.top, corpus, corpus.arrival < stage.low),
        "false_quarantine": honest.held,
        "steps": honest.steps,
        "step_cost": None,
    }
    if (settings.adversarial, settings.influence) != (bare.adversarial, bare.influence):
        found["step_cost"] = _cost(stage, Stage(corpus, bare, scenario, cache, tell))

    def probed(kind: str, means: Means) -> dict[str, Any]:
        guard = settings.text_guard.guard or TextGuard()
        told = f"{scenario}{kind}{means}{guard}{stage.told}"
        kept = stage.file("probe", told, ".json")
        if kept.is_file():
            known: dict[str, Any] = json.loads(kept.read_text())
            return known
        made = probe(
            stage.learner,
            honest.weights,
            stage.high,
            kind,
            stage.targets,
            stage.queries,
            seed,
            tell,
            means=means,
            guard=guard,
        )
        kept.write_text(json.dumps(made))
        return made

    found["pgd"] = probed("pgd", Means(epsilon=plan.pgd[0], steps=plan.pgd[1]))
    found["texts"] = {kind: probed(kind, Means(words=plan.words)) for kind in plan.texts}
    found["poison"] = {
        kind: poisoned.run(corpus, settings, replace(scenario, kind=kind), cache, tell) for kind in plan.kinds
    }
    return found


def _cost(stage: Stage, bare: Stage) -> float:
    """See `step_cost`; kept, and the same for every attack."""
    kept = stage.file("cost", stage.told, ".json")
    if not kept.is_file():
        kept.write_text(json.dumps(step_cost(stage, bare)))
    return float(json.loads(kept.read_text()))


def summary(runs: Sequence[dict[str, Any]], variant: str, plan: Plan) -> dict[str, Any]:
    """A variant against the model without defences.

    A reduction is the share of the targets' gained exposure@10 (poisoned less clean, summed over seeds) that is
    gone; null where the attack gained nothing. Intervals are 95%, by bootstrap over attacks and seeds (2,000
    resamples).
    """
    mine = {run["seed"]: run for run in runs if run["variant"] == variant}
    bare = {run["seed"]: run for run in runs if run["variant"] == NONE}
    seeds = sorted(mine.keys() & bare.keys())

    def pairs(read: Callable[[dict[str, Any]], float]) -> np.ndarray[Any, np.dtype[np.float64]]:
        return np.array([(read(mine[seed]), read(bare[seed])) for seed in seeds]).reshape(-1, 2)

    def poison_gain(kind: str, key: str) -> Callable[[dict[str, Any]], float]:
        return lambda run: run["poison"][kind]["poisoned"][key] - run["poison"][kind]["clean"][key]

    attacked = {kind: pairs(poison_gain(kind, "exposure@10")) for kind in plan.kinds}
    seen50 = {kind: pairs(poison_gain(kind, "hr@50")) for kind in plan.kinds}

    def text_gain(kind: str) -> Callable[[dict[str, Any]], float]:
        return lambda run: text_after(run, kind)["gain"]  # type: ignore[no-any-return]

    texts = {kind: pairs(text_gain(kind)) for kind in plan.texts}
    clean = pairs(lambda run: run["clean"]["ndcg@10"])
    pgd = pairs(lambda run: run["pgd"]["after"]["ndcg@10"])
    together = np.concatenate([np.zeros((0, 2)), *attacked.values()])
    costs = [run["step_cost"] for run in mine.values() if run["step_cost"] is not None]
    detectors = [run["poison"][kind].get("detector") for run in mine.values() for kind in plan.kinds]
    seen = [one for one in detectors if one]
    held = [run["false_quarantine"] for run in mine.values() if run["false_quarantine"] is not None]
    overlaps = [pairs(_overlap(kind)).mean(axis=0) for kind in plan.kinds]
    return {
        "exposure_lift_reduction": {kind: reduction(gains) for kind, gains in attacked.items()},
        "exposure_lift_reduction_mean": reduction(together),
        "exposure_lift_reduction_ci": _interval(together),
        "exposure_gain": {kind: gains.mean(axis=0).tolist() for kind, gains in attacked.items()},
        "hr50_lift_reduction": {kind: reduction(gains) for kind, gains in seen50.items()},
        "text_lift_reduction": reduction(np.concatenate(list(texts.values()))) if texts else None,
        "text_lift_reductions": {kind: reduction(gains) for kind, gains in texts.items()},
        "clean_ndcg": clean.mean(axis=0).tolist(),
        "clean_ndcg_change": _change(clean),
        "clean_ndcg_changes": (clean[:, 0] / clean[:, 1] - 1).tolist(),
        "pgd_ndcg": pgd.mean(axis=0).tolist(),
        "pgd_ndcg_change": _change(pgd),
        "overlap": np.mean(overlaps, axis=0).tolist() if overlaps else None,
        "detector_auc": float(np.mean([one["auc"] for one in seen])) if seen else None,
        "detector_auc_least": min((one["auc"] for one in seen), default=None),
        "caught": float(np.mean([one["caught"] for one in seen])) if seen else None,
        "precision": float(np.mean([one["precision"] for one in seen])) if seen else None,
        "false_quarantine": float(np.mean(held)) if held else None,
        "false_quarantine_attacked": float(np.mean([one["false_quarantine"] for one in seen]))
        if seen
        else None,
        "false_quarantine_power": float(np.mean([one["false_quarantine_power"] for one in seen]))
        if seen
        else None,
        "fairness": compared(
            [bare[seed]["groups"] for seed in seeds], [mine[seed]["groups"] for seed in seeds]
        ),
        "head_share": pairs(lambda run: run["head_share"]).mean(axis=0).tolist(),
        "step_cost_ratio": float(np.mean(costs)) if costs else None,
    }


def text_after(run: dict[str, Any], kind: str) -> dict[str, Any]:
    """What an attack on texts came to, for targets that nobody has touched: those with an id hardly move.

    The guard belongs to the whole of the defences; the others are measured on what they make of the model.
    """
    found: dict[str, Any] = run["texts"][kind]["untouched"]
    return found["guarded"] if run["variant"] == ALL else found


def _overlap(kind: str) -> Callable[[dict[str, Any]], float]:
    return lambda run: run["poison"][kind]["overlap@10"]  # type: ignore[no-any-return]


def reduction(gains: np.ndarray[Any, np.dtype[np.float64]]) -> float | None:
    """Share of the gains without defence (second column) that is gone with it (first column); null for no gain."""
    mine, bare = gains.sum(axis=0)
    return float(1 - mine / bare) if bare > 0 else None


def _interval(gains: np.ndarray[Any, np.dtype[np.float64]]) -> list[float] | None:
    rng = np.random.default_rng(0)
    drawn = [gains[rng.integers(len(gains), size=len(gains))] for _ in range(_RESAMPLED)]
    found = [one for one in map(reduction, drawn) if one is not None]
    return np.quantile(found, [0.025, 0.975]).tolist() if found else None


def _change(pair: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(pair[:, 0].mean() / pair[:, 1].mean() - 1)
