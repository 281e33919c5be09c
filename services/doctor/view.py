"""The report as a person reads it, and as a program does."""

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from services.doctor.examination import Report
from services.doctor.finding import LEVELS, Level, worst
from services.plain_text import printable

_MARKS = {"ok": ("✓", "green"), "warning": ("!", "bold yellow"), "error": ("✗", "bold red")}


def report_view(report: Report) -> RenderableType:
    """What `headrace doctor` prints: a line per finding, and under what is not well what to do."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group, findings in report.items():
        for place, finding in enumerate(findings):
            mark, style = _MARKS[finding.level]
            told = Text(printable_lines(finding.seen))
            if finding.advice:
                told.append(f"\n→ {printable_lines(finding.advice)}", style)
            table.add_row("" if place else group, Text(mark, style), Text(finding.what), told)
    return Group(table, "", verdict(report))


def verdict(report: Report) -> Text:
    """One line: how many of which."""
    counts = count(report)
    level = worst(finding for findings in report.values() for finding in findings)
    if level == "ok":
        return Text(f"All {counts['ok']} checks are well.", "bold green")
    told = [
        f"{counts[name]} {name}{'s' * (counts[name] != 1)}" for name in ("error", "warning") if counts[name]
    ]
    return Text(f"{', '.join(told)}; {counts['ok']} checks are well.", _MARKS[level][1])


def report_json(report: Report) -> dict[str, Any]:
    """The report for a program."""
    return {
        "level": worst(finding for findings in report.values() for finding in findings),
        "counts": count(report),
        "findings": [
            {"group": group} | vars(finding) for group, findings in report.items() for finding in findings
        ],
    }


def count(report: Report) -> dict[Level, int]:
    """Findings of each level."""
    levels = [finding.level for findings in report.values() for finding in findings]
    return {level: levels.count(level) for level in LEVELS}


def printable_lines(text: str) -> str:
    """Text of strangers, line by line, in which every character prints as itself or as an escape."""
    return "\n".join(printable(line) for line in text.split("\n"))
