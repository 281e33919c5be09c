"""What a check found."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: names it in a few words, the same each time.
        seen: what was there.
        advice: what to do; empty where all is well.
    """

    what: str
    level: Level
    seen: str
    advice: str = ""


def ok(what: str, seen: str) -> Finding:
    """All is well."""
    return Finding(what, "ok", seen)


def warning(what: str, seen: str, advice: str) -> Finding:
    """It runs, but not as it should, or not for long."""
    return Finding(what, "warning", seen, advice)


def error(what: str, seen: str, advice: str) -> Finding:
    """It does not run like this, or loses data."""
    return Finding(what, "error", seen, advice)


def worst(findings: Iterable[Finding]) -> Level:
    """The gravest level among findings; ok where there are none."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")
