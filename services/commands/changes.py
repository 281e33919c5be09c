"""`--set a.b=1` on the command line: settings changed for one run."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from services.commands import fail, load

if TYPE_CHECKING:
    from training.config import TrainingSettings


ChangesOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="A setting: training.model.dim=128; several times if wanted."),
]


def frozen_training(settings: Path | None, change: list[str] | None) -> "TrainingSettings":
    """Training settings with the changes of `--set`, for commands that do not train the text encoder."""
    changes = parsed(change or [])
    training: TrainingSettings = changed(load(settings).training, changes.pop("training", {}))
    if changes:
        fail(f"--set: names begin with training.; got {', '.join(changes)}")
    if training.finetune != "frozen":
        fail(
            "training.finetune: expected 'frozen', as attacks are on what users do and on texts as read; got "
            f"{training.finetune!r}"
        )
    return training


def parsed(pairs: list[str]) -> dict[str, Any]:
    """`a.b=1` pairs as nested dictionaries."""
    found: dict[str, Any] = {}
    for pair in pairs:
        name, sign, value = pair.partition("=")
        if not sign:
            fail(f"--set: expected NAME=VALUE, got {pair!r}")
        *parents, leaf = name.split(".")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        try:
            node[leaf] = json.loads(value)
        except ValueError:
            node[leaf] = value
    return found


def changed(section: Any, changes: dict[str, Any]) -> Any:
    """Settings with some changed, checked anew."""
    from pydantic import ValidationError

    def merge(base: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
        both = {
            key: merge(base[key], value) if isinstance(value, dict) else value for key, value in more.items()
        }
        return base | both

    try:
        return type(section).model_validate(merge(section.model_dump(), changes))
    except (ValidationError, KeyError) as error:
        fail(f"--set: {error}")
