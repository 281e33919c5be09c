"""`headrace attack`: what fake users can do to a model, measured on a recorded stream."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from services.commands import SettingsOption, fail, load
from services.commands.changes import changed, parsed

app = typer.Typer(
    name="attack",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Attack a model on a recorded stream, and measure what it did.",
)


@app.command(name="list")
def list_attacks() -> None:
    """Name the attacks, what they try, and where they are described."""
    from training.attacks import ATTACKS

    table = Table()
    for column in ("attack", "targets", "how", "described in"):
        table.add_column(column)
    for name, attack in ATTACKS.items():
        how = (attack.__doc__ or "").splitlines()[0]
        table.add_row(name, "promoted" if attack.promotes else "demoted", how, attack.reference)
    Console().print(table)


@app.command()
def run(
    dataset: Annotated[Path, typer.Option(help="Dataset folder: interactions.parquet and items.parquet.")],
    kind: Annotated[str, typer.Option(help="Which attack; `headrace attack list` names them.")] = "bandwagon",
    size: Annotated[str, typer.Option(help="Fake users as a share of the honest ones: 1% or 0.01.")] = "1%",
    targets: Annotated[int, typer.Option(min=1, help="Items that are attacked.")] = 5,
    popular: Annotated[bool, typer.Option(help="Take targets from the head instead of the tail.")] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of targets, fake users and training.")] = 0,
    out: Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")] = None,
    cache: Annotated[Path, typer.Option(help="Text vectors and clean models.")] = Path(
        ".headrace/evaluation"
    ),
    settings: SettingsOption = None,
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="A training setting: training.model.dim=128; several times if wanted."),
    ] = None,
) -> None:
    """Train on clean history, let the attack arrive in the newest window, and compare what users are shown.

    Clean models are kept, so a second attack on the same stream takes a fraction of the time.

    Example: `headrace attack run --dataset data/shop --kind segment --size 3% --targets 5 --out result.json`
    """
    import torch

    from services.datasets import DatasetError, load_dataset
    from services.evaluation.corpus import make_corpus
    from services.evaluation.poisoned import Scenario
    from services.evaluation.poisoned import run as attack
    from training.attacks import ATTACKS

    console = Console(highlight=False)
    if kind not in ATTACKS:
        fail(f"--kind: expected one of {', '.join(ATTACKS)}; got {kind!r}")
    changes = parsed(change or [])
    training = changed(load(settings).training, changes.pop("training", {}))
    if changes:
        fail(f"--set: names begin with training.; got {', '.join(changes)}")
    if training.finetune != "frozen":
        fail(
            f"training.finetune: expected 'frozen', as attacks are on what users do; got {training.finetune!r}"
        )
    if threads:
        torch.set_num_threads(threads)
    scenario = Scenario(kind=kind, size=_share(size), targets=targets, popular=popular, seed=seed)
    try:
        report = attack(make_corpus(load_dataset(dataset)), training, scenario, cache, console.log)
    except DatasetError as error:
        fail(str(error))
    table = Table(
        title=f"{report['dataset']}: {kind}, {report['fake_users']} fake users", title_justify="left"
    )
    for column in ("model", "targets' HR@10", "HR@50", "exposure@10", "NDCG@10"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for name, told in (
        ("before", "clean history"),
        ("clean", "and an honest window"),
        ("poisoned", "and the attacked one"),
    ):
        figures = [report[name][key] for key in ("hr@10", "hr@50", "exposure@10", "ndcg@10")]
        table.add_row(told, *(f"{figure:.4f}" for figure in figures))
    console.print(table)
    lift = report["lift"]
    told = "were not shown at all without it" if lift is None else f"are shown {lift:.1f} times as often"
    console.print(f"The targets {told}; lists have {report['overlap@10']:.0%} of their items in common.")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {out}")


def _share(text: str) -> float:
    """`1%` or `0.01` as a number above 0 and at most 1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        fail(f"--size: expected a share such as 1% or 0.01; got {text!r}")
    return share
