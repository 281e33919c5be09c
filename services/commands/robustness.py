"""`headrace robustness`: what attacks do to a model with and without defences, as a table."""

import json
import shlex
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.commands import CACHE, CacheOption, OutOption, SettingsOption, ThreadsOption, fail
from services.commands.changes import ChangesOption, frozen_training


def robustness(
    dataset: Annotated[Path, typer.Option(help="Dataset folder: interactions.parquet and items.parquet.")],
    seeds: Annotated[str, typer.Option(help="Seeds of models, targets and fake users: 0,1,2.")] = "0,1,2",
    kinds: Annotated[
        str, typer.Option(help="Attacks on the stream; `headrace attack list` names them.")
    ] = "bandwagon,segment,gan,optimised",
    texts: Annotated[str, typer.Option(help="Attacks on items' texts.")] = "keywords,greedy",
    defences: Annotated[
        str,
        typer.Option(help="Measured against none: all, or one by one: adversarial,trust,influence,all."),
    ] = "all",
    size: Annotated[float, typer.Option(min=1e-6, max=1, help="Fake users as a share of the honest.")] = 0.01,
    targets: Annotated[int, typer.Option(min=1, help="Items that are attacked.")] = 5,
    popular: Annotated[bool, typer.Option(help="Take targets from the head instead of the tail.")] = False,
    epsilon: Annotated[float, typer.Option(min=0, help="Radius of the exam's PGD, share of the norm.")] = 0.1,
    report: OutOption = None,
    threads: ThreadsOption = None,
    cache: CacheOption = CACHE,
    settings: SettingsOption = None,
    change: ChangesOption = None,
) -> None:
    """Attack the same model with and without defences, and print what each defence is worth.

    What was measured is kept: a run that was cut short goes on where it was, and another defence costs only itself.

    Example: `headrace robustness --dataset data/shop --seeds 0 --kinds bandwagon --report robustness.json`
    """
    import torch

    from services.datasets import DatasetError, load_dataset
    from services.evaluation.corpus import make_corpus
    from services.evaluation.robustness import ALL, NONE, VARIANTS, Plan, measure
    from services.machine import machine, versions
    from training.attacks import ATTACKS, TEXT_ATTACKS

    console = Console(highlight=False)
    for option, given, known in (
        ("--kinds", kinds, tuple(ATTACKS)),
        ("--texts", texts, tuple(TEXT_ATTACKS)),
        ("--defences", defences, VARIANTS[1:]),
    ):
        for name in filter(None, given.split(",")):
            if name not in known:
                fail(f"{option}: expected some of {', '.join(known)}; got {name!r}")
    training = frozen_training(settings, change)
    if threads:
        torch.set_num_threads(threads)
    try:
        plan = Plan(
            seeds=[int(seed) for seed in seeds.split(",")],
            kinds=[kind for kind in kinds.split(",") if kind],
            texts=[kind for kind in texts.split(",") if kind],
            variants=(NONE, *(name for name in VARIANTS[1:] if name in defences.split(","))),
            size=size,
            targets=targets,
            popular=popular,
            pgd=(epsilon, 3),
        )
    except ValueError:
        fail(f"--seeds: expected whole numbers such as 0,1,2; got {seeds!r}")
    began = time.monotonic()
    try:
        found = measure(make_corpus(load_dataset(dataset)), training, plan, cache, console.log)
    except DatasetError as error:
        fail(str(error))
    headline = found["summary"].get(ALL, next(iter(found["summary"].values())))
    keys = (
        "exposure_lift_reduction",
        "text_lift_reduction",
        "clean_ndcg_change",
        "pgd_ndcg_change",
        "detector_auc",
        "false_quarantine",
        "step_cost_ratio",
    )
    found = {**{key: headline[key] for key in keys}, **found}
    found |= {"settings": training.model_dump(mode="json", exclude_defaults=True)}
    found["command"] = shlex.join(["headrace", *sys.argv[1:]])
    found |= {"minutes": round((time.monotonic() - began) / 60, 1), "machine": machine()}
    found |= {"versions": versions("headrace", "torch", "deepspeed", "numpy")}
    console.print(_table(found))
    for warning in headline["fairness"]["warnings"]:
        console.print(f"[yellow]a defence hurts a group[/]: {warning}")
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        report.write_text(json.dumps(found, indent=1) + "\n")
        console.print(f"written: {report}")


def _table(report: dict[str, object]) -> Table:
    """A column per defence."""
    summary: dict[str, dict[str, object]] = report["summary"]  # type: ignore[assignment]
    made = Table(
        title=f"{report['dataset']}, seeds {report['seeds']}: against the same model without defences",
        title_justify="left",
    )
    made.add_column("figure", style="bold")
    for name in summary:
        made.add_column(name, justify="right")

    def row(label: str, *path: str, sign: bool = False, share: bool = True) -> None:
        cells = []
        for found in summary.values():
            value: object = found
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if not isinstance(value, int | float):
                cells.append("–")
            else:
                cells.append(f"{value:+.1%}" if sign else f"{value:.1%}" if share else f"{value:.3f}")
        made.add_row(label, *cells)

    kinds: dict[str, object] = next(iter(summary.values()))["exposure_lift_reduction"]  # type: ignore[assignment]
    for kind in kinds:
        row(f"lift taken away: {kind}", "exposure_lift_reduction", kind)
    row("lift taken away: all of these", "exposure_lift_reduction_mean")
    row("lift taken away: texts", "text_lift_reduction")
    row("NDCG@10", "clean_ndcg_change", sign=True)
    row("NDCG@10 under PGD", "pgd_ndcg_change", sign=True)
    row("detector ROC-AUC", "detector_auc", share=False)
    row("fakes in quarantine", "caught")
    row("honest users in quarantine", "false_quarantine")
    row("cost of a step, times", "step_cost_ratio", share=False)
    return made
