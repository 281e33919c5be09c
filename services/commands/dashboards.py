"""`headrace dashboards`: the Grafana dashboards as files."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from services.commands import fail


def dashboards(
    out: Annotated[Path, typer.Option(help="Folder for the JSON files.")] = Path("dashboards"),
    runbooks: Annotated[
        str,
        typer.Option(help="Address at which your people read docs/operations.md; links of alerts go there."),
    ] = "docs/operations.md",
) -> None:
    """Write the Grafana dashboards: overview, streaming, training and robustness, serving.

    Import them into Grafana 10 or newer, or let its provisioning read the folder. On Kubernetes the component
    `monitoring` ships the same files as ConfigMaps. They are made from the metrics that this version tells.

    Example: `headrace dashboards --out grafana --runbooks https://git.example.org/headrace/docs/operations.md`
    """
    from services.dashboards.files import write

    try:
        written = write(out, runbooks)
    except OSError as error:
        fail(f"the dashboards cannot be written to {out}: {error}")
    for path in written:
        Console().print(str(path), highlight=False, soft_wrap=True)
