"""`--set a.b=1` on the command line: settings changed for one run."""

import json
from typing import Any

from services.commands import fail


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
