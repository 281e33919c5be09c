"""The quarantine as a person reads it, and as a program does."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from rich.console import Group as Stack
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from services.plain_text import moment, printable
from services.quarantine import Case, Deed
from streaming.trust import Decision, name_of
from streaming.windows import iso

_STYLES = {"held": "bold red", "released": "green", "purged": "dim"}
_DEEDS = 30  # shown per window, unless all are asked for


def list_view(
    cases: Sequence[Case], total: int, counts: Mapping[int, int], ids: Mapping[int, str], screened: int
) -> RenderableType:
    """What `quarantine list` prints.

    Args:
        cases: those to show. total: how many there are. counts: events of each user. ids: where known.
        screened: windows that were looked at.
    """
    windows = f"{screened:,} screened window{'s' * (screened != 1)}"
    if not cases:
        return Text(f"Nobody is held, after {windows}.")
    table = Table(box=None, pad_edge=False, header_style="bold", expand=True)
    for name in ("user", "since (UTC)", "windows", "events", "trust", ""):
        numeric = name in ("windows", "events", "trust")
        table.add_column(name, justify="right" if numeric else "left", no_wrap=True)
    table.add_column("why", ratio=1)
    for case in cases:
        table.add_row(
            Text(_shown(case.user, ids), "cyan"),
            "—" if case.since_ms is None else moment(case.since_ms)[:16],
            f"{len(case.holds):,}",
            f"{counts[case.user]:,}",
            f"{case.holds[-1].trust:.2f}" if case.holds else "—",
            Text(case.status, _STYLES[case.status]),
            Text(printable(case.reason, 300)),
        )
    more = f" · {total - len(cases):,} more (--limit)" if total > len(cases) else ""
    example = name_of(cases[0].user)[:9]
    return Stack(
        Text(f"{total:,} user{'s' * (total != 1)}, {windows}{more}", "bold"),
        "",
        table,
        "",
        Text(f"headrace quarantine show '{example}'   release '{example}'   purge '{example}'", "dim"),
    )


def case_view(
    case: Case, user_id: str | None, trust: float | None, deeds: Mapping[int, list[Deed]], *, whole: bool
) -> RenderableType:
    """What `quarantine show` prints.

    Args:
        trust: in the user's row of the state; None: there is no row. whole: all events, however many.
    """
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    if user_id is not None:
        table.add_row("id", printable(user_id, 600))
    table.add_row("status", Text(case.status, _STYLES[case.status]))
    table.add_row("state", "no row" if trust is None else f"trust {trust:.2f}")
    if case.decision is not None:
        table.add_row("decision", _decision(case.decision))
    parts: list[RenderableType] = [Text.assemble("user ", (name_of(case.user), "bold cyan")), "", table]
    for hold in reversed(case.holds):
        done = deeds.get(hold.start_ms, [])
        head = Text.assemble(
            (f"\n{iso(hold.start_ms)}", "bold"),
            (f"  trust {hold.trust:.2f}  {len(done):,} event{'s' * (len(done) != 1)}", "dim"),
        )
        parts += [head, Text(printable(hold.reason), "red")]
        parts.append(_deeds(done if whole else done[:_DEEDS]))
        if len(done) > _DEEDS and not whole:
            parts.append(Text(f"  … {len(done) - _DEEDS:,} more (--full shows all)", "dim"))
    return Stack(*parts)


def _deeds(deeds: Iterable[Deed]) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for style in ("dim", "dim", ""):
        table.add_column(style=style, no_wrap=True)
    table.add_column(ratio=1)
    for deed in deeds:
        item = Text(name_of(deed.item), "dim") if deed.item_id is None else Text(printable(deed.item_id, 60))
        title = "not in the catalogue" if deed.title is None else printable(deed.title, 120)
        table.add_row(f"  {moment(deed.time_ms)}", deed.type, item, Text(title))
    return table


def _decision(decision: Decision) -> Text:
    by = f" by {printable(decision.by, 60)}" if decision.by else ""
    note = f": {printable(decision.note, 400)}" if decision.note else ""
    return Text(f"{decision.decision} {_time(decision.at)}{by}{note}")


def case_json(case: Case, user_id: str | None, events: int | list[dict[str, Any]]) -> dict[str, Any]:
    """A case for a program; `events` is how many, or what they are."""
    decision = case.decision
    return {
        "user": name_of(case.user),
        "user_id": user_id,
        "status": case.status,
        "since": None if case.since_ms is None else iso(case.since_ms),
        "windows": [
            {"window": iso(hold.start_ms), "trust": round(hold.trust, 4), "reason": hold.reason}
            for hold in case.holds
        ],
        "events": events,
        "decision": decision
        and {
            "decision": decision.decision,
            "at": _time(decision.at),
            "by": decision.by,
            "note": decision.note,
        },
    }


def deeds_json(deeds: Mapping[int, list[Deed]]) -> list[dict[str, Any]]:
    """Events for a program, oldest window first."""
    return [
        {
            "window": iso(start),
            "time_ms": deed.time_ms,
            "type": deed.type,
            "item": name_of(deed.item),
            "item_id": deed.item_id,
            "title": deed.title,
        }
        for start, done in deeds.items()
        for deed in done
    ]


def _shown(user: int, ids: Mapping[int, str]) -> str:
    return printable(ids[user], 40) if user in ids else name_of(user)


def _time(at: float) -> str:
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%dT%H:%M:%SZ}"
