"""`headrace restore` and `headrace snapshots`: state from snapshots, and a look at what there is."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands import SettingsOption, fail, load

if TYPE_CHECKING:
    from services.settings import Settings
    from streaming.backup.snapshots import SnapshotStore

_From = Annotated[
    str | None,
    typer.Option("--from", metavar="URL", help="Where the snapshots are; default: streaming.snapshots.url."),
]
_Shards = Annotated[
    list[int] | None,
    typer.Option("--shard", metavar="N", help="Only this logical shard; may be given several times."),
]

snapshots = typer.Typer(
    name="snapshots",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at the snapshots of the state.",
)


def restore(
    settings: SettingsOption = None,
    source: _From = None,
    before: Annotated[
        str | None,
        typer.Option(
            "--before",
            metavar="TIME",
            help="Take none newer than this: 15m, 2h, 7d (ago), or ISO 8601 (UTC).",
        ),
    ] = None,
    shard: _Shards = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be restored; write nothing.")
    ] = False,
) -> None:
    """Fill an empty data directory with the newest snapshots of its state.

    Refuses where there is state, or where a running process hosts it. Afterwards `headrace up` replays the topics
    from the snapshots' offsets on; a node without state does all of this by itself when it starts.
    """
    from services.plain_text import console
    from services.restore import Restore, restored_table
    from streaming.errors import StreamingError

    until = _time(before)
    loaded = load(settings)
    out = console()
    try:
        store = _store(loaded, source)
        results = Restore(loaded, store, until).run(shard or (), dry_run=dry_run)
    except StreamingError as error:
        fail(str(error), 1)
    out.print(restored_table(results))
    found = sum(result.info is not None for result in results)
    if not found:
        fail(f"no snapshot in {store.url}" + (f" from before {before}" if before else ""), 1)
    if dry_run:
        out.print(f"Dry run: nothing was written to {loaded.data_dir / 'state'}.", markup=False)
        return
    out.print(
        f"Restored {found} of {len(results)} shards into {loaded.data_dir / 'state'}. "
        "Next: `headrace up` applies what came into the topics after these offsets.",
        markup=False,
    )


@snapshots.command(name="list")
def list_snapshots(settings: SettingsOption = None, source: _From = None, shard: _Shards = None) -> None:
    """List the complete snapshots: when they were taken, how large they are, and the offsets in them."""
    from services.plain_text import console
    from services.restore import snapshots_of, snapshots_table
    from streaming.errors import StreamingError

    loaded = load(settings)
    try:
        store = _store(loaded, source)
        found = snapshots_of(store, shard or ())
    except StreamingError as error:
        fail(str(error), 1)
    if not found:
        console().print(f"No snapshots in {store.url}.", markup=False)
        return
    console().print(snapshots_table(found))


def _store(settings: "Settings", url: str | None) -> "SnapshotStore":
    from streaming.backup.snapshots import SnapshotStore

    configured = settings.streaming.snapshots
    return SnapshotStore(configured.model_copy(update={"url": url}) if url else configured)


def _time(text: str | None) -> datetime | None:
    from services.plain_text import since_ms

    if text is None:
        return None
    try:
        return datetime.fromtimestamp(since_ms(text) / 1000, UTC)
    except ValueError as error:
        fail(f"--before: {error}")
