"""`headrace evaluate`: offline quality on any dataset folder, beside real baselines."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.commands import CACHE, CacheOption, OutOption, SettingsOption, ThreadsOption, fail, load
from services.commands.changes import changed, parsed


def evaluate(
    dataset: Annotated[Path, typer.Option(help="Dataset folder: interactions.parquet and items.parquet.")],
    protocol: Annotated[
        str,
        typer.Option(help="loo (last item of each user), temporal (newest part) or prequential (windows)."),
    ] = "temporal",
    models: Annotated[
        str,
        typer.Option(
            help="What to compare, separated by commas; `prequential` compares ways to learn instead."
        ),
    ] = "ours,sasrec,item-knn,user-popular,recent-popular,popular",
    out: OutOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw quality over time or history into this PNG file.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of weights, shuffling and samples.")] = 0,
    repeats: Annotated[
        bool, typer.Option(help="Headline with repeats: nothing is filtered (both readings are in --out).")
    ] = False,
    cold: Annotated[
        float,
        typer.Option(min=0, max=0.9, help="Keep this share of items out of training; ask for those alone."),
    ] = 0.0,
    holdout: Annotated[
        float, typer.Option(min=0.01, max=0.9, help="Share of the stream asked by temporal.")
    ] = 0.1,
    queries: Annotated[int, typer.Option(min=1, help="Most test queries asked, a fixed sample.")] = 20_000,
    windows: Annotated[int, typer.Option(min=2, help="Windows of prequential.")] = 20,
    patience: Annotated[int, typer.Option(min=1, help="Epochs without a gain on the validation.")] = 5,
    threads: ThreadsOption = None,
    cache: CacheOption = CACHE,
    settings: SettingsOption = None,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="A setting: training.model.dim=128, sasrec.length=50; several times if wanted."
        ),
    ] = None,
) -> None:
    """Rank the whole catalogue for held-out events, with Headrace's model and with baselines.

    Settings are chosen on a validation part alone; the test is asked once. Reported per model: HR, NDCG and MRR at 5,
    10 and 20 with bootstrap intervals over users, coverage, Gini, novelty, segments (new users, new items, head and
    tail), with and without the items a user already had. Trainings that were interrupted are taken up again.

    Example: `headrace evaluate --dataset data/ml-1m --protocol loo --models ours,popular --out result.json`
    """
    from services.datasets import DatasetError
    from services.evaluation.report import plot as draw
    from services.evaluation.report import table
    from services.evaluation.run import MODELS, PROTOCOLS, Request
    from services.evaluation.run import evaluate as run
    from services.evaluation.sasrec import SasrecSettings

    console = Console(highlight=False)
    names = [name.strip() for name in models.split(",") if name.strip()]
    if protocol not in PROTOCOLS:
        fail(f"--protocol: expected one of {', '.join(PROTOCOLS)}; got {protocol!r}")
    unknown = [name for name in names if name not in MODELS]
    if unknown:
        fail(f"--models: expected some of {', '.join(MODELS)}; got {', '.join(unknown)}")
    changes = parsed(change or [])
    training = changed(load(settings).training, changes.pop("training", {}))
    sasrec = changes.pop("sasrec", {})
    if changes:
        fail(f"--set: names begin with training. or sasrec.; got {', '.join(changes)}")
    try:
        request = Request(
            dataset=dataset,
            protocol=protocol,
            models=names,
            training=training,
            sasrec=SasrecSettings(**sasrec),
            seed=seed,
            unseen=not repeats,
            cold=cold,
            holdout=holdout,
            queries=queries,
            windows=windows,
            patience=patience,
            threads=threads,
            cache=cache,
        )
        report = run(request, lambda text: console.log(text, highlight=False))
    except (DatasetError, TypeError) as error:
        fail(str(error))
    console.print(table(report))
    report["command"] = shlex.join(["headrace", *sys.argv[1:]])
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {out}")
    if plot is not None:
        draw(report, plot)
        console.print(f"drawn: {plot}")
