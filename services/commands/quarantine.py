"""`headrace quarantine`: look at users whom the detector holds, and decide about them."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from services.commands import KeyOption, SettingsOption, UrlOption, fail, load

if TYPE_CHECKING:
    from services.quarantine import Case, Quarantine
    from services.settings import Settings

app = typer.Typer(
    name="quarantine",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at users who are held because they behave like a manipulation, and decide about them.\n\n"
    "What a held user does is stored and served as ever, but no model is trained on it. USER is a user id, or a hash "
    "as `list` shows it; quote it, as `#` begins a comment in most shells: `'#1f2e3d4c'` (four digits or more).",
)

_User = Annotated[str, typer.Argument(metavar="USER", help="A user id, or a quoted hash.")]
_Users = Annotated[list[str] | None, typer.Argument(metavar="USER", help="User ids, or quoted hashes.")]
_AllHeld = Annotated[bool, typer.Option("--all-held", help="All who are held now.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
_Note = Annotated[str, typer.Option("--note", metavar="TEXT", help="Why; kept with the decision.")]
_By = Annotated[
    str | None, typer.Option("--by", metavar="NAME", help="Who decides; default: the login name.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
_Ids = Annotated[
    bool,
    typer.Option("--ids", help="Look the ids up: reads the events topics, some 40,000 records a second."),
]


@app.command(name="list")
def list_users(
    settings: SettingsOption = None,
    every: Annotated[bool, typer.Option("--all", help="Also who was released or purged.")] = False,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="TIME", help="Only windows since then: 2h, 7d, or ISO 8601 (UTC)."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Newest users shown.")] = 20,
    ids: _Ids = False,
    as_json: _Json = False,
) -> None:
    """List the users who are held: since when, in how many windows, with how many events there, and why."""
    from services.plain_text import console
    from services.quarantine import hashes_of
    from services.quarantine_view import case_json, list_view
    from services.user_ids import find_ids

    loaded = load(settings)
    with _errors():
        quarantine = _open(loaded, since)
        found = quarantine.listed() if every else quarantine.held()
        shown = found[:limit]
        counts = quarantine.counts(shown)
        names = find_ids(loaded, hashes_of(shown)) if ids and shown else {}
        if as_json:
            _print_json([case_json(case, names.get(case.user), counts[case.user]) for case in shown])
        else:
            console().print(list_view(shown, len(found), counts, names, len(quarantine.windows)))


@app.command()
def show(
    user: _User,
    settings: SettingsOption = None,
    full: Annotated[bool, typer.Option("--full", help="Show all events, however many.")] = False,
    ids: _Ids = False,
    as_json: _Json = False,
) -> None:
    """Show what one user did in the windows in which he was held, and why he was.

    Titles are those of the catalogue. What was purged is not there any more.
    """
    from services.plain_text import console
    from services.quarantine import hashes_of
    from services.quarantine_view import case_json, case_view, deeds_json
    from services.user_ids import find_ids

    loaded = load(settings)
    with _errors():
        quarantine = _open(loaded)
        case = quarantine.find(user)
        deeds, user_id = quarantine.deeds(case), _id_of(user)
        if ids and user_id is None:
            user_id = find_ids(loaded, hashes_of([case])).get(case.user)
        if as_json:
            trust = {"state_trust": quarantine.trust(case.user)}
            _print_json(case_json(case, user_id, deeds_json(deeds)) | trust)
        else:
            console().print(case_view(case, user_id, quarantine.trust(case.user), deeds, whole=full))


@app.command()
def release(
    users: _Users = None,
    settings: SettingsOption = None,
    all_held: _AllHeld = False,
    yes: _Yes = False,
    note: _Note = "",
    by: _By = None,
    as_json: _Json = False,
) -> None:
    """Release users: what they did and will do counts in full, whatever the detector says.

    Holds for later windows too, until `hold`. Takes effect with the learner's next round, and in the state within
    a second where the pipeline runs.

    Example: `headrace quarantine release ann --note "a reviewer, known to us"`
    """
    loaded = load(settings)
    with _errors():
        quarantine = _open(loaded)
        cases = _chosen(quarantine, users, all_held, yes, "Release")
        _decide(loaded, cases, "released", by, note)
    _report(cases, "released", as_json)


@app.command()
def hold(
    users: _Users = None,
    settings: SettingsOption = None,
    note: _Note = "",
    by: _By = None,
    as_json: _Json = False,
) -> None:
    """Hold users by hand, or again after a release: nothing of them is trained on until they are released."""
    from services.quarantine import Case

    if not users:
        fail("whom? Name users: user ids, or hashes in quotes ('#1f2e3d4c')")
    loaded = load(settings)
    with _errors():
        quarantine = _open(loaded)
        cases = [Case(quarantine.user_of(user), (), None) for user in users]
        _decide(loaded, cases, "held", by, note)
    _report(cases, "held", as_json)


@app.command()
def purge(
    users: _Users = None,
    settings: SettingsOption = None,
    all_held: _AllHeld = False,
    yes: _Yes = False,
    note: _Note = "",
    by: _By = None,
    url: UrlOption = None,
    key: KeyOption = None,
    timeout: Annotated[float, typer.Option(min=0, help="Longest wait for the erasure, seconds.")] = 60.0,
    as_json: _Json = False,
) -> None:
    """Purge users: erase their state and all they did in open and closed windows, and train on nothing of them again.

    The erasure goes through the stream, as `DELETE /v1/users/{id}` does, and needs the user id: one given as a hash
    is looked up in the events topics. What models have already learned stays until windows without it outweigh it;
    to go back at once, promote an earlier version.

    Example: `headrace quarantine purge --all-held --yes`
    """
    from services.quarantine import Eraser

    loaded = load(settings)
    with _errors():
        quarantine = _open(loaded)
        cases = _chosen(quarantine, users, all_held, yes, "Purge (there is no way back)")
        names = _names(loaded, quarantine, cases, users)
        unknown = [case for case in cases if case.user not in names]
        known = [case for case in cases if case.user in names]
        with Eraser(loaded, url, key) as eraser:
            requests = []
            for case in known:
                requests.append(eraser.forget(names[case.user]))
                _decide(loaded, [case], "purged", by, note)
            runs = eraser.runs() if requests else False
            left = eraser.wait(requests, timeout) if runs else requests
    _report(known, "purged", as_json, {"erased": not left, "unknown": len(unknown)})
    if not as_json and known and not left:
        typer.echo("Erased from the state and from all windows.")
    problems = []
    if unknown:
        problems.append(
            f"{len(unknown)} could not be purged, as no events topic holds a record of theirs any more and the "
            f"erasure needs the id ({_hashes(unknown)}): give the id itself, or leave them held"
        )
    if left and not runs:
        problems.append(
            "no pipeline runs here: the erasure waits in the topic, and `headrace up` carries it out"
        )
    elif left:
        problems.append(
            f"{len(left)} erasures are asked for but were not seen within {timeout:g} s: see `lag` and `problems` in "
            "/v1/stats; they are carried out when the stream reaches them"
        )
    if problems:
        fail("; ".join(problems), 1)


@contextmanager
def _errors() -> Iterator[None]:
    """Tell people's errors as such."""
    from services.quarantine import QuarantineError
    from streaming.errors import StreamingError

    try:
        yield
    except (QuarantineError, StreamingError) as error:
        fail(str(error), 1)


def _open(settings: "Settings", since: str | None = None) -> "Quarantine":
    from services.plain_text import since_ms
    from services.quarantine import Quarantine

    try:
        start = None if since is None else since_ms(since)
    except ValueError as error:
        fail(f"--since: {error}")
    return Quarantine(settings, start)


def _chosen(
    quarantine: "Quarantine", users: list[str] | None, all_held: bool, yes: bool, verb: str
) -> "list[Case]":
    if bool(users) == all_held:
        fail("whom? Name users (ids, or hashes in quotes: '#1f2e3d4c'), or else --all-held")
    if not all_held:
        return list({case.user: case for case in map(quarantine.find, users or ())}.values())
    cases = quarantine.held()
    if not cases:
        typer.echo("Nobody is held.", err=True)
        raise typer.Exit(0)
    if not yes and not typer.confirm(f"{verb}: {len(cases):,} users?", err=True):
        raise typer.Exit(1)
    return cases


def _names(
    settings: "Settings", quarantine: "Quarantine", cases: "list[Case]", users: list[str] | None
) -> dict[int, str]:
    """Ids by hash: those given, and those that the events topics hold."""
    from services.quarantine import hashes_of
    from services.user_ids import find_ids

    given = {quarantine.user_of(user): user for user in users or () if _id_of(user) is not None}
    missing = [case for case in cases if case.user not in given]
    if missing:
        typer.echo(f"looking for the ids of {len(missing):,} users in the events topics …", err=True)
    return given | (find_ids(settings, hashes_of(missing)) if missing else {})


def _decide(
    settings: "Settings",
    cases: "list[Case]",
    decision: Literal["released", "purged", "held"],
    by: str | None,
    note: str,
) -> None:
    from streaming.trust import decide

    who = by if by is not None else os.environ.get("USER", "")
    for case in cases:
        decide(settings.data_dir, case.user, decision, by=who, note=note)


def _id_of(user: str) -> str | None:
    """The id, where it is one and not a hash."""
    from services.quarantine import is_hash

    return None if is_hash(user) else user


def _report(cases: "list[Case]", decision: str, as_json: bool, more: dict[str, Any] | None = None) -> None:
    from streaming.trust import name_of

    if as_json:
        _print_json({decision: [name_of(case.user) for case in cases]} | (more or {}))
    elif cases:
        count = len(cases)
        typer.echo(f"{count:,} user{'s' * (count != 1)} {decision}: {_hashes(cases)}")


def _hashes(cases: "list[Case]") -> str:
    from streaming.trust import name_of

    named = ", ".join(name_of(case.user) for case in cases[:5])
    return named + (f" and {len(cases) - 5:,} more" if len(cases) > 5 else "")


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
