"""Dead letters as a person reads them: the groups and the newest, one letter whole, what a replay did."""

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from services.dead_letters import REPLAYED_FROM, DeadLetter, Group, Summary
from services.plain_text import moment, pretty, printable
from services.redelivery import Outcome

_LINES = 60  # of a letter's bytes, unless all are asked for
_GROUPS = 30  # shown


def summary_view(summary: Summary, topic: str) -> RenderableType:
    """What `dlq list` prints."""
    if not summary.groups:
        return Text(f"No dead letters in {topic}.")
    first = min(group.first_ms for group in summary.groups)
    last = max(group.last_ms for group in summary.groups)
    replayed = sum(group.replayed for group in summary.groups)
    title = Text.assemble(
        (topic, "bold cyan"),
        f"  {summary.count:,} dead letter{'s' * (summary.count != 1)}",
        _replayed(replayed),
    )
    parts: list[RenderableType] = [
        title,
        Text(f"{_span(first, last)} UTC · places are partition:offset", "dim"),
        "",
        _groups(summary.groups),
    ]
    if len(summary.groups) > _GROUPS:
        parts.append(
            Text(f"  … {len(summary.groups) - _GROUPS} rarer reasons (--reason TEXT narrows)", "dim")
        )
    if summary.newest:
        example = summary.newest[0].place
        parts += ["", Text("newest", "dim"), _newest(summary), ""]
        parts.append(Text(f"headrace dlq show {example}   headrace dlq replay --all --dry-run", "dim"))
    return Stack(*parts)


def _groups(groups: list[Group]) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(justify="right", style="bold red", no_wrap=True)
    table.add_column(ratio=1)
    for group in groups[:_GROUPS]:
        origin = "an unknown topic" if group.topic is None else printable(group.topic, 60)
        lines = Text(printable(group.kind, 400))
        lines.append(f"\nfrom {origin} · {_span(group.first_ms, group.last_ms)} · such as ", "dim")
        lines.append(str(group.example.place), "cyan")
        if group.topic is not None:
            lines.append(f" (was {group.example.partition}:{group.example.offset})", "dim")
        table.add_row(f"{group.count:,}", lines + _replayed(group.replayed))
    return table


def _newest(summary: Summary) -> RenderableType:
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=3, no_wrap=True, overflow="ellipsis")
    table.add_column(ratio=2, no_wrap=True, overflow="ellipsis", style="dim")
    for letter in summary.newest:
        mark = Text("↻ ", "green") if letter.place in summary.replayed else Text()
        table.add_row(
            str(letter.place),
            moment(letter.time_ms)[5:],
            mark + Text(printable(letter.reason, 200)),
            _glimpse(letter),
        )
    return table


def letter_view(
    letter: DeadLetter, topic: str, today: str | None, replayed: bool, *, whole: bool = False
) -> RenderableType:
    """What `dlq show` prints.

    Args:
        today: why today's settings refuse it; None: they accept it.
        replayed: whether it was sent again.
        whole: all of its bytes, however many lines that takes.
    """
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_row("reason", Text(printable(letter.reason), "bold red"))
    table.add_row("from", _origin(letter))
    table.add_row("met", f"{moment(letter.time_ms)} UTC")
    if today is None:
        table.add_row("today", Text("✔ would be accepted now", "green"))
    else:
        table.add_row("today", Text(f"✘ {printable(today)}", "red"))
    table.add_row("replayed", Text("yes", "green") if replayed else Text("no"))
    table.add_row("key", Text("none", "dim") if letter.key is None else Text(printable(letter.key, 500)))
    for position, (name, value) in enumerate(letter.headers):
        shown = "" if value is None else printable(value, 500)
        table.add_row(
            "" if position else "headers", Text.assemble((f"{printable(name, 60)}: ", "dim"), shown)
        )
    parts: list[RenderableType] = [
        Text.assemble("dead letter ", (str(letter.place), "bold cyan"), (f" of {topic}", "dim")),
        "",
        table,
        "",
    ]
    if letter.value is None:
        return Stack(*parts, Text("no value (a tombstone)", "dim"))
    kind, text = pretty(letter.value, None if whole else _LINES)
    cut = not whole and text.rpartition("\n")[2].startswith("…")
    hint = " · --full shows all of it, --raw writes the bytes" if cut else ""
    return Stack(*parts, Text(f"{kind}, {len(letter.value):,} bytes{hint}", "dim"), Text(text))


def outcome_view(outcome: Outcome, *, dry_run: bool) -> RenderableType:
    """What `dlq replay` prints at its end."""
    verb = "would be sent" if dry_run else "sent again and acknowledged"
    style = "bold green" if outcome.sent else "bold"
    table = Table.grid(padding=(0, 2), expand=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(ratio=1)
    table.add_row(Text(f"{outcome.sent:,}", style), verb)
    for reason, count in outcome.skipped.most_common():
        line = Text.assemble(("skipped: ", "dim"), printable(reason, 400), (" · such as ", "dim"))
        table.add_row(Text(f"{count:,}", "yellow"), line.append(str(outcome.examples[reason]), "cyan"))
    return Padding(table, (0, 0))


def _origin(letter: DeadLetter) -> Text:
    if letter.topic is None:
        return Text("unknown: it has no header headrace.topic", "dim")
    origin = f"topic {printable(letter.topic, 200)}, partition {letter.partition}, offset {letter.offset}"
    before = dict(letter.headers).get(REPLAYED_FROM)
    return Text(origin + (f" (replayed before, from {printable(before, 40)})" if before else ""))


def _glimpse(letter: DeadLetter) -> Text:
    return Text("no value" if letter.value is None else printable(letter.value, 200))


def _replayed(count: int) -> Text:
    return Text(f"  ↻ {count:,} replayed", "green") if count else Text()


def _span(first_ms: int, last_ms: int) -> str:
    """`2026-11-22 10:00:01 → 10:05:07`, with the date said once where it is the same."""
    first, last = moment(first_ms), moment(last_ms)
    if first == last:
        return first
    return f"{first} → {last.removeprefix(first[:11]) if first[:11] == last[:11] else last}"
