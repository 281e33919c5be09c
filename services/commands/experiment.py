"""`headrace experiment`: serve several model versions at once, and see what comes of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from services.commands import SettingsOption, fail, load

if TYPE_CHECKING:
    from services.settings import Settings
    from serving.experiments.plan import Arm
    from training.registry import Registry

app = typer.Typer(
    name="experiment",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Serve several model versions at once: to compare them on users (ab), to watch one that nobody sees "
    "(shadow), or to give one to some users first (canary).\n\nWorks on the registry's folder, so run it where that "
    "is; replicas follow within `serving.refresh_s`.",
)

_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def start(
    name: Annotated[str, typer.Argument(help="Names the experiment, and decides which users get what.")],
    arm: Annotated[
        list[str],
        typer.Option(
            "--arm", metavar="NAME=VERSION:SHARE", help="Once per arm, the control first; share: 0 to 1."
        ),
    ],
    kind: Annotated[
        Literal["ab", "shadow", "canary"], typer.Option(help="What is done with the arms; see above.")
    ] = "ab",
    settings: SettingsOption = None,
) -> None:
    """Begin an experiment, or go on with a running one with other shares.

    VERSION may be `current`: the version that is current now, whatever is promoted later. Users outside all arms get
    what is current. Where one of two arms grows at the other's cost, its users stay in it.

    Example: `headrace experiment start wider --arm control=current:0.5 --arm wider=v0012:0.5`
    """
    from serving.experiments.plan import Plan, write_plan

    registry = _registry(load(settings))
    with _errors():
        plan = Plan.make(name, kind, tuple(_arm(text, registry) for text in arm))
        write_plan(registry, plan)
    told = ", ".join(f"{one.name} = {one.version} for {one.share:.2%}" for one in plan.arms)
    typer.echo(f"{plan.name} runs ({plan.kind}): {told}")


@app.command()
def stop(settings: SettingsOption = None) -> None:
    """End the experiment: all users get what is current."""
    from serving.experiments.plan import stop_plan

    ended = stop_plan(_registry(load(settings)))
    typer.echo(f"{ended.name} has ended" if ended else "No experiment runs.")


@app.command()
def show(settings: SettingsOption = None, as_json: _Json = False) -> None:
    """Show the experiment that runs, and what the canary of the newest promotion is at."""
    from services.experiment_view import plan_view
    from services.plain_text import console
    from serving.experiments.plan import read_plan
    from serving.experiments.rollout import NOTE, Rollout

    registry = _registry(load(settings))
    with _errors():
        plan, note = read_plan(registry), registry.note(NOTE)
        rollout = None if note is None else Rollout.model_validate(note)
    if as_json:
        told = {
            "experiment": plan and plan.model_dump(mode="json"),
            "rollout": rollout and rollout.model_dump(mode="json"),
        }
        typer.echo(json.dumps(told, indent=2))
    else:
        console().print(plan_view(plan, rollout, registry.current()))


@app.command()
def promote(
    arm: Annotated[str, typer.Argument(help="The arm whose version is to become the current one.")],
    settings: SettingsOption = None,
) -> None:
    """End the experiment and promote an arm's version; with `serving.canary` it proves itself on few users first."""
    from serving.experiments.plan import read_plan, stop_plan

    registry = _registry(load(settings))
    with _errors():
        plan = read_plan(registry)
        if plan is None:
            fail("no experiment runs; `headrace experiment start` begins one", 1)
        versions = {one.name: one.version for one in plan.arms}
        if arm not in versions:
            fail(f"experiment {plan.name} has no arm {arm!r}; it has {', '.join(versions)}", 1)
        registry.promote(versions[arm], f"arm {arm} of experiment {plan.name}")
        stop_plan(registry)
    typer.echo(f"{versions[arm]} is current; {plan.name} has ended")


@app.command()
def report(
    name: Annotated[
        str | None, typer.Argument(help="The experiment; default: the one that runs, or that was logged.")
    ] = None,
    success: Annotated[
        str, typer.Option(metavar="TYPES", help="Event types that are a success, separated by commas.")
    ] = "click,purchase",
    window: Annotated[
        str, typer.Option(help="How long after something was shown a success counts: 30m, 24h, 7d.")
    ] = "24h",
    impressions: Annotated[
        Path | None, typer.Option(help="Parquet or JSON lines; default: the topic serving.impressions.topic.")
    ] = None,
    events: Annotated[
        Path | None, typer.Option(help="Parquet or JSON lines; default: the topics of streaming.sources.")
    ] = None,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999, help="Of the intervals.")] = 0.95,
    out: Annotated[Path | None, typer.Option("--report", help="Write all figures to this JSON file.")] = None,
    settings: SettingsOption = None,
    as_json: _Json = False,
) -> None:
    """Compare the arms: how many users did what one hopes for, after it was shown to them.

    Look as often as you like and stop when the verdict suits the decision: the intervals are confidence sequences,
    which stay valid under that. The split of users is tested too, and where propensities were logged, what would have
    happened without exploration is estimated.
    """
    from services.experiment_data import read_impressions, read_successes
    from services.experiment_report import chosen
    from services.experiment_report import report as evaluate
    from services.experiment_view import report_view
    from services.plain_text import console, duration_ms
    from serving.experiments.plan import read_plan

    loaded = load(settings)
    with _errors():
        try:
            window_ms = duration_ms(window)
        except ValueError as error:
            fail(f"--window: {error}")
        plan = read_plan(_registry(loaded))
        shown = read_impressions(loaded, impressions)
        found, shown = chosen(shown, name or (plan.name if plan else None))
        wanted = tuple(one.strip() for one in success.split(","))
        figures = evaluate(
            shown,
            read_successes(loaded, events, wanted),
            name=found,
            window_ms=window_ms,
            shares=plan.shares if plan and plan.name == found else None,
            alpha=1 - confidence,
        )
    if out is not None:
        out.write_text(json.dumps(figures, indent=2) + "\n")
    if as_json:
        typer.echo(json.dumps(figures, indent=2))
    else:
        console().print(report_view(figures))


@contextmanager
def _errors() -> Iterator[None]:
    """Tell people's errors as such."""
    from services.experiment_data import ReportError
    from serving.experiments.plan import PlanError
    from streaming.errors import StreamingError
    from training.errors import RegistryError

    try:
        yield
    except (PlanError, RegistryError, ReportError, StreamingError) as error:
        fail(str(error), 1)


def _registry(settings: "Settings") -> "Registry":
    from training.registry import Registry

    return Registry(settings.data_dir / "models", keep=settings.training.keep_versions)


def _arm(text: str, registry: "Registry") -> "Arm":
    from pydantic import ValidationError

    from serving.experiments.plan import Arm

    name, _, rest = text.partition("=")
    version, _, share = rest.rpartition(":")
    try:
        if version == "current":
            version = registry.current() or version
        return Arm(name=name, version=version, share=float(share))
    except (ValueError, ValidationError):
        fail(
            f"--arm: expected NAME=VERSION:SHARE with a share in (0, 1], such as control=current:0.5; got {text!r}"
        )
