"""`headrace doctor`: what stands in the way."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands import SettingsOption

if TYPE_CHECKING:
    from services.doctor.examination import Report


def doctor(
    settings: SettingsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    timeout: Annotated[
        float, typer.Option(min=0.1, max=60, help="Longest wait for one answer of the broker, seconds.")
    ] = 5.0,
) -> None:
    """Look at everything Headrace needs, and say what to do about what is missing.

    Python and packages, memory, `/dev/shm`, open files, ports and who has them, the data directory and its disk, the
    text encoder and the model, Kafka (reach, rights, topics, the newest records, clocks), the store of snapshots. It
    takes seconds, and may be run beside a running Headrace. Nothing is written into your topics but one note in
    the dead-letter topic, which `headrace dlq` passes over; files it tries with are removed again.

    Ends with 0 when nothing is an error, else with 1. A finding is *ok*, a *warning* (it runs, but not as it should)
    or an *error*.

    Example: `headrace doctor --json | jq '.findings[] | select(.level != "ok")'`
    """
    from services.doctor.finding import worst
    from services.doctor.view import report_json, report_view
    from services.plain_text import console

    report = _examined(settings, timeout)
    if as_json:
        typer.echo(json.dumps(report_json(report), indent=2, ensure_ascii=False))
    else:
        console().print(report_view(report))
    if worst(finding for findings in report.values() for finding in findings) == "error":
        raise typer.Exit(1)


def _examined(path: Path | None, timeout_s: float) -> "Report":
    from services.checks import check_sources
    from services.doctor.examination import examine, examine_machine
    from services.settings import SettingsError, load_settings

    try:
        loaded = load_settings(path)
        check_sources(loaded)
    except SettingsError as error:
        return examine_machine(str(error), timeout_s)
    return examine(loaded, timeout_s)
