"""Commands of `headrace`, one module per subject; what they share stands here.

Modules here import nothing heavy at module level: `headrace --help` answers at once.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from services.settings import Settings

_errors = Console(stderr=True)

SettingsOption = Annotated[
    Path | None,
    typer.Option("--settings", help="Settings file; default: headrace.toml here, if there is one."),
]

UrlOption = Annotated[
    str | None,
    typer.Option("--url", help="Where the API of the running Headrace is; default: as the settings say."),
]
KeyOption = Annotated[
    str | None,
    typer.Option(
        "--key",
        envvar="HEADRACE_API_KEY",
        help="API key with scope admin; default: serving.admin_api_key. Better in the environment: others on this "
        "machine can read a command line.",
    ),
]

OutOption = Annotated[Path | None, typer.Option(help="Write all figures to this JSON file.")]
ThreadsOption = Annotated[int | None, typer.Option(min=1, help="CPU threads; default: all cores.")]
CacheOption = Annotated[Path, typer.Option(help="Text vectors, models, and what can be taken up again.")]
CACHE = Path(".headrace/evaluation")


def fail(message: str, code: int = 2) -> NoReturn:
    """Print what went wrong and exit."""
    _errors.print(f"[bold red]headrace:[/] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code)


def load(path: Path | None) -> "Settings":
    """Read the settings, or say what is wrong with them and exit."""
    from services.settings import SettingsError, load_settings

    try:
        return load_settings(path)
    except SettingsError as error:
        fail(str(error))
