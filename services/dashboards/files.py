"""All dashboards, and their files."""

import json
from pathlib import Path

from services.dashboards.overview import overview
from services.dashboards.panels import Dashboard
from services.dashboards.serving import serving
from services.dashboards.streaming import streaming
from services.dashboards.training import training

RUNBOOKS = "docs/operations.md"

# metrics that no dashboard shows, each with the reason
NOT_SHOWN: dict[str, str] = {}


def dashboards() -> tuple[Dashboard, ...]:
    """All of them; the first is where to begin."""
    return overview(), streaming(), training(), serving()


def texts(runbooks: str = RUNBOOKS) -> dict[str, str]:
    """JSON by file name.

    Args:
        runbooks: address at which docs/operations.md is read; links of alerts go there.
    """
    return {f"{page.name}.json": json.dumps(page.to_json(runbooks), indent=1) + "\n" for page in dashboards()}


def write(folder: Path, runbooks: str = RUNBOOKS) -> list[Path]:
    """Write the files into a folder, which is made if need be, and return their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in texts(runbooks).items():
        (folder / name).write_text(text)
        written.append(folder / name)
    return written
