"""`headrace attack`: what fake users can do to a model, on a recorded stream and on a running system."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from services.commands import CACHE, CacheOption, OutOption, SettingsOption, ThreadsOption, fail, load
from services.commands.changes import ChangesOption, frozen_training

if TYPE_CHECKING:
    from services.streamed_attack import Planned

app = typer.Typer(
    name="attack",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Attack a model on a recorded stream, or a running system, and see what it does.",
)


@app.command(name="list")
def list_attacks() -> None:
    """Name the attacks, what they try, and where they are described."""
    from training.attacks import ATTACKS, EMBEDDING_ATTACKS, HISTORY_ATTACKS, TEXT_ATTACKS

    table = Table()
    for column in ("attack", "on", "how", "described in"):
        table.add_column(column)
    poison = {True: "the stream, targets up", False: "the stream, targets down"}
    for name, attack in ATTACKS.items():
        table.add_row(name, poison[attack.promotes], _how(attack), attack.reference)
    for on, attacks in (
        ("a user's history", HISTORY_ATTACKS),
        ("items' texts", TEXT_ATTACKS),
        ("what the model reads", EMBEDDING_ATTACKS),
    ):
        for name, served in attacks.items():  # type: ignore[attr-defined]
            table.add_row(name, on, _how(served), served.reference)
    Console().print(table)


def _how(attack: type) -> str:
    return (attack.__doc__ or "").splitlines()[0]


@app.command()
def run(
    dataset: Annotated[Path, typer.Option(help="Dataset folder: interactions.parquet and items.parquet.")],
    kind: Annotated[str, typer.Option(help="Which attack; `headrace attack list` names them.")] = "bandwagon",
    size: Annotated[str, typer.Option(help="Fake users as a share of the honest ones: 1% or 0.01.")] = "1%",
    targets: Annotated[int, typer.Option(min=1, help="Items that are attacked.")] = 5,
    popular: Annotated[bool, typer.Option(help="Take targets from the head instead of the tail.")] = False,
    scratch: Annotated[
        bool, typer.Option(help="Train anew on history and window, instead of fine-tuning on the window.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Of targets, fake users and training.")] = 0,
    out: OutOption = None,
    threads: ThreadsOption = None,
    cache: CacheOption = CACHE,
    settings: SettingsOption = None,
    change: ChangesOption = None,
) -> None:
    """Train on clean history, let the attack arrive in the newest window, and compare what users are shown.

    Attacks on texts, histories and representations meet the model that learned the honest window and stays as it is.
    Clean models are kept, so a second attack on the same stream takes a fraction of the time.

    Example: `headrace attack run --dataset data/shop --kind segment --size 3% --targets 5 --out result.json`
    """
    import torch

    from services.datasets import DatasetError, load_dataset
    from services.evaluation.corpus import make_corpus
    from services.evaluation.poisoned import Scenario, Stage
    from services.evaluation.poisoned import run as attack
    from services.evaluation.probed import SERVING_ATTACKS, probe
    from training.attacks import ATTACKS

    console = Console(highlight=False)
    if kind not in ATTACKS and kind not in SERVING_ATTACKS:
        fail(f"--kind: expected one of {', '.join((*ATTACKS, *SERVING_ATTACKS))}; got {kind!r}")
    training = frozen_training(settings, change)
    if threads:
        torch.set_num_threads(threads)
    scenario = Scenario(
        kind=kind, size=_share(size), targets=targets, popular=popular, seed=seed, scratch=scratch
    )
    try:
        corpus = make_corpus(load_dataset(dataset))
        if kind in ATTACKS:
            report = attack(corpus, training, scenario, cache, console.log)
        else:
            stage = Stage(corpus, training, scenario, cache, console.log)
            weights, asked = stage.honest().weights, (stage.targets, stage.queries)
            guard = training.text_guard.guard
            report = probe(stage.learner, weights, stage.high, kind, *asked, seed, console.log, guard=guard)
            report = {"dataset": corpus.name, "seed": seed, **report}
    except DatasetError as error:
        fail(str(error))
    if kind in ATTACKS:
        _tell_poisoned(console, report)
    else:
        _tell_served(console, report)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written: {out}")


@app.command()
def stream(
    kind: Annotated[
        str, typer.Option(help="Which shilling attack; `headrace attack list` names them.")
    ] = "bandwagon",
    size: Annotated[str, typer.Option(help="Fake users as a share of the honest ones: 5% or 0.05.")] = "5%",
    targets: Annotated[
        int, typer.Option(min=1, help="Items that are attacked, drawn from the rare ones.")
    ] = 5,
    item: Annotated[
        list[str] | None,
        typer.Option("--item", metavar="ID", help="Attack this item instead; several times if wanted."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of targets and fake users.")] = 0,
    rate: Annotated[
        float | None,
        typer.Option(min=0.1, help="Events per second; default: as fast as the broker takes them."),
    ] = None,
    span: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Event time in which fake users act, from the stream's newest event on: 30m, 2h. "
            "Default: the window that is open now.",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Write the ids of fake users and targets to this JSON file.")
    ] = None,
    settings: SettingsOption = None,
) -> None:
    """Stream a shilling attack into a running system, as ordinary events.

    For a system of your own: fake users stay in its topic and its state until they are purged. Run it where the
    pipeline keeps its data, with the pipeline's settings: the attacker knows its closed windows and its catalogue.

    Example: `headrace attack stream --size 5% --targets 3 --out attack.json`
    """
    from services.errors import SendError
    from services.plain_text import duration_ms
    from services.streamed_attack import AttackError, Order, plan, send
    from streaming.errors import StreamingError

    loaded = load(settings)
    try:
        span_ms = None if span is None else duration_ms(span)
    except ValueError as error:
        fail(f"--span: {error}")
    order = Order(kind, _share(size), targets, tuple(item or ()), seed, span_ms)
    try:
        planned = plan(loaded, order)
        if out is not None:  # before the first event: whoever is sent can be found again
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(
                json.dumps(planned.report(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
            )
        sent = send(loaded, planned, rate)
    except (AttackError, SendError, StreamingError) as error:
        fail(str(error), 1)
    _tell_streamed(planned, sent, out)


def _tell_streamed(planned: "Planned", sent: int, out: Path | None) -> None:
    from services.plain_text import console, moment, printable

    told, order = console(), planned.order
    told.print(
        f"{order.kind}: {len(planned.users):,} fake users ({order.size:.1%} of {planned.honest_users:,}) sent "
        f"{sent:,} events to topic {printable(planned.topic)}, dated {moment(planned.start_ms)} to "
        f"{moment(planned.stop_ms)} UTC (window {', '.join(planned.windows)}).",
        soft_wrap=True,
    )
    table = Table()
    for column in ("target", "title", "events so far"):
        table.add_column(column)
    for item, title, before in zip(planned.targets, planned.titles, planned.before, strict=True):
        table.add_row(Text(printable(item, 40)), Text(printable(title, 60)), f"{before:,}")
    told.print(table)
    if out is not None:
        told.print(f"written: {out}", soft_wrap=True)
    told.print(
        "When the window closes, the learner screens it before it learns from it. Then look at\n"
        "  headrace quarantine list          who is held, and why\n"
        "  GET /v1/stats                     learner.trust: the newest screen; trust.screened: the newest in state\n"
        "  GET /v1/models                    what the gate said of the model that learned from the window",
        soft_wrap=True,
    )


def _tell_poisoned(console: Console, report: dict[str, Any]) -> None:
    told = {
        "before": "clean history",
        "clean": "and an honest window",
        "poisoned": "and the attacked one",
    }
    title = f"{report['dataset']}: {report['kind']}, {report['fake_users']} fake users"
    console.print(_figures(title, {words: report[name] for name, words in told.items()}))
    lift = report["lift"]
    shown = "were not shown at all without it" if lift is None else f"are shown {lift:.1f} times as often"
    console.print(f"The targets {shown}; lists have {report['overlap@10']:.0%} of their items in common.")
    if "detector" in report:
        seen = report["detector"]
        console.print(
            f"Held in quarantine: {seen['caught']:.0%} of the fake users, {seen['false_quarantine']:.2%} of the "
            f"honest ones (ROC-AUC {seen['auc']:.3f})."
        )


def _tell_served(console: Console, report: dict[str, Any]) -> None:
    rows = {"as it is": report["before"], "attacked": report["after"]}
    if "guarded" in report:
        rows["attacked, texts guarded"] = report["guarded"]["after"]
    console.print(_figures(f"{report['dataset']}: {report['kind']}, the model stays as it is", rows))


def _figures(title: str, rows: dict[str, dict[str, float]]) -> Table:
    table = Table(title=title, title_justify="left")
    columns = {
        "hr@10": "targets' HR@10",
        "hr@50": "HR@50",
        "exposure@10": "exposure@10",
        "ndcg@10": "NDCG@10",
    }
    shown = [key for key in columns if all(key in figures for figures in rows.values())]
    table.add_column("model")
    for key in shown:
        table.add_column(columns[key], justify="right")
    for told, figures in rows.items():
        table.add_row(told, *(f"{figures[key]:.4f}" for key in shown))
    return table


def _share(text: str) -> float:
    """`1%` or `0.01` as a number above 0 and at most 1."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        fail(f"--size: expected a share such as 1% or 0.01; got {text!r}")
    return share
