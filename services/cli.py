"""The command line. Heavy imports wait until a command needs them, so `--help` answers at once."""

import importlib.metadata
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

from services.commands import SettingsOption, fail
from services.commands.attack import app as attack_app
from services.commands.dashboards import dashboards
from services.commands.dlq import app as dlq_app
from services.commands.doctor import doctor
from services.commands.evaluate import evaluate
from services.commands.experiment import app as experiment_app
from services.commands.inspect import inspect
from services.commands.keys import app as keys_app
from services.commands.quarantine import app as quarantine_app
from services.commands.restore import restore, snapshots
from services.commands.robustness import robustness
from services.commands.scale import scale
from services.commands.size import size

app = typer.Typer(
    name="headrace",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="A streaming recommender that keeps learning and refuses to be manipulated.\n\n"
    "Start with `headrace demo`: the whole system on this machine, on a recorded stream. "
    "Then `headrace config --example > headrace.toml` and `headrace up` for your own Kafka.",
)


def _tell_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"headrace {importlib.metadata.version('headrace')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options of `headrace` itself."""


app.add_typer(attack_app, name="attack")
app.add_typer(dlq_app, name="dlq")
app.add_typer(experiment_app, name="experiment")
app.add_typer(keys_app, name="keys")
app.add_typer(quarantine_app, name="quarantine")
app.add_typer(snapshots, name="snapshots")
app.command()(dashboards)
app.command()(doctor)
app.command()(evaluate)
app.command()(robustness)
app.command()(inspect)
app.command()(restore)
app.command()(scale)
app.command()(size)


def main() -> None:
    """Entry point of the `headrace` command."""
    app()


@app.command()
def demo(
    dataset: Annotated[
        Path | None,
        typer.Option(help="Dataset folder to play; default: MovieLens-100K, fetched once and cached."),
    ] = None,
    duration: Annotated[
        float | None, typer.Option(min=1, help="End this many seconds after the first trained model serves.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write the measured figures to this JSON file.")] = None,
    rate: Annotated[float, typer.Option(min=1, help="Events per second of the steady part.")] = 50.0,
    requests: Annotated[float, typer.Option(min=0, help="Sampled requests per second (prequential).")] = 20.0,
    attack: Annotated[
        bool, typer.Option(help="Let fake users come after a quarter of the duration; give it 120 s or more.")
    ] = False,
    port: Annotated[int, typer.Option(help="Port of the API.")] = 8000,
    data_dir: Annotated[Path, typer.Option(help="Where the demo stores things; emptied first.")] = Path(
        ".headrace/demo"
    ),
) -> None:
    """Play a recorded stream against the whole system and watch it learn.

    Starts an embedded Kafka-compatible broker (or uses `KAFKA_BOOTSTRAP_SERVERS`), Ray, the pipeline and the
    API. The first 60% of the events go in as fast as they can; then the first model is trained, judged and
    served; then the rest follows at a steady rate while models are fine-tuned, judged and swapped.
    """
    from services.datasets import DatasetError
    from services.demo import Demo, DemoError, DemoOptions
    from services.replay import ReplayError
    from services.settings import SettingsError
    from services.streamed_attack import AttackError
    from services.view import LiveView
    from streaming.errors import StreamingError

    _terminate_like_ctrl_c()
    options = DemoOptions(
        dataset=dataset,
        duration_s=duration,
        report=report,
        rate=rate,
        requests_per_s=requests,
        attack=attack,
        port=port,
        data_dir=data_dir,
    )
    _check_port(port)
    try:
        with LiveView() as view, Demo(options, view) as running:
            figures = running.run()
    except (AttackError, DatasetError, DemoError, ReplayError, SettingsError, StreamingError) as error:
        fail(str(error), 1)
    if figures is not None:
        _summary(figures)
    if duration is not None and figures is None:
        raise typer.Exit(1)


@app.command()
def up(
    settings: SettingsOption = None,
) -> None:
    """Run Headrace against your own Kafka, on this machine, until Ctrl-C.

    Reads `headrace.toml` (see `headrace config --example`); `HEADRACE_…` in the environment overrides it.
    On Kubernetes a RayService runs the same two applications: see k8s/README.md.
    """
    from services.checks import check_sources
    from services.settings import SettingsError, load_settings
    from services.up import run_until_stopped
    from streaming.errors import StreamingError

    _terminate_like_ctrl_c()
    try:
        loaded = load_settings(settings)
        check_sources(loaded)
        _check_port(loaded.serving.port)
        run_until_stopped(loaded, Console())
    except (SettingsError, StreamingError, TimeoutError) as error:
        fail(str(error))


@app.command()
def config(
    example: Annotated[
        bool, typer.Option("--example", help="Print every setting with default and meaning.")
    ] = False,
    settings: Annotated[Path | None, typer.Option(help="Settings file to check.")] = None,
) -> None:
    """Check a settings file, or print a commented example."""
    from services.checks import check_sources
    from services.settings import Settings, SettingsError, load_settings, to_toml

    if example:
        sys.stdout.write(to_toml(Settings.model_construct()))
        return
    try:
        loaded = load_settings(settings)
        check_sources(loaded)
    except SettingsError as error:
        fail(str(error))
    sys.stdout.write(loaded.model_dump_json(indent=2) + "\n")


def _terminate_like_ctrl_c() -> None:
    """SIGTERM (docker stop, kill) ends a command as cleanly as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


def _check_port(port: int) -> None:
    import socket

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            fail(f"port {port} is in use; stop what listens there or choose another (--port, serving.port)")


def _summary(figures: dict[str, object]) -> None:
    from services.summary import summary_table

    Console().print(summary_table(figures))


if __name__ == "__main__":
    main()
