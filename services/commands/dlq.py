"""`headrace dlq`: look at dead letters, and send them again once their cause is mended."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from services.commands import SettingsOption, fail, load

if TYPE_CHECKING:
    from services.dead_letters import Selection

app = typer.Typer(
    name="dlq",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Look at dead letters (records that did not validate), and send them again.",
)

_Since = Annotated[
    str | None,
    typer.Option("--since", metavar="TIME", help="Only letters since then: 15m, 2h, 7d, or ISO 8601 (UTC)."),
]
_Reason = Annotated[
    str | None,
    typer.Option("--reason", metavar="TEXT", help="Only letters whose reason holds this text, in any case."),
]
_Topic = Annotated[
    str | None, typer.Option("--topic", metavar="TOPIC", help="Only letters that came from this topic.")
]


@app.command(name="list")
def list_letters(
    settings: SettingsOption = None,
    since: _Since = None,
    reason: _Reason = None,
    topic: _Topic = None,
    limit: Annotated[int, typer.Option(min=0, max=10_000, help="Newest letters shown.")] = 10,
) -> None:
    """Count the dead letters by reason, and show the newest.

    Reads the dead-letter topic from its beginning to its present end; joins no group and commits nothing.
    """
    from services.dead_letter_view import summary_view
    from services.dead_letters import letters_in, replayed_in, summarise
    from services.plain_text import console
    from services.topic_reader import TopicReader, UnknownTopicError
    from streaming.errors import StreamingError

    loaded, selection = load(settings), _selection(reason, topic, since)
    name = loaded.kafka.dead_letter_topic
    try:
        with TopicReader(loaded.kafka, name) as reader:
            replayed = replayed_in(reader)
            console().print(summary_view(summarise(letters_in(reader, selection), replayed, limit), name))
    except UnknownTopicError:
        console().print(f"No dead letters: topic {name} does not exist yet.", markup=False)
    except StreamingError as error:
        fail(str(error), 1)


@app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="PLACE", help="partition:offset, as `dlq list` shows it.")],
    settings: SettingsOption = None,
    full: Annotated[bool, typer.Option("--full", help="Show all of its bytes, however many.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Write its bytes as they are, and nothing else.")
    ] = False,
) -> None:
    """Show one dead letter whole, and what today's settings make of it.

    What a terminal would obey instead of print is shown as an escape.
    """
    from services.dead_letter_view import letter_view
    from services.dead_letters import Place, letters_at, replayed_in
    from services.plain_text import console
    from services.redelivery import Judge
    from services.topic_reader import TopicReader
    from streaming.errors import StreamingError

    loaded = load(settings)
    name = loaded.kafka.dead_letter_topic
    try:
        wanted = Place.parse(place)
        with TopicReader(loaded.kafka, name) as reader:
            (letter,) = letters_at(reader, [wanted])
            if raw:
                sys.stdout.buffer.write(letter.value or b"")
                return
            (today,) = Judge(loaded).reasons([letter])
            console().print(letter_view(letter, name, today, wanted in replayed_in(reader), whole=full))
    except StreamingError as error:
        fail(str(error), 1)


@app.command()
def replay(
    places: Annotated[
        list[str] | None, typer.Argument(metavar="PLACE", help="Letters to send, as partition:offset.")
    ] = None,
    settings: SettingsOption = None,
    every: Annotated[bool, typer.Option("--all", help="All letters.")] = False,
    reason: _Reason = None,
    topic: _Topic = None,
    since: _Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be sent; send nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Send also what today's settings refuse.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Send also what was replayed before.")] = False,
) -> None:
    """Send dead letters again, to the topic and partition they came from.

    Key, bytes and headers are the original ones; the `headrace.*` headers give way to `headrace.replayed-from`.
    Only letters that today's settings accept are sent (mend the mapping or the settings first; `--dry-run`
    tells), and none that was replayed before: the dead-letter topic itself keeps note of those, so this holds on
    every machine.

    A repeat does no harm as long as the record has an event id that is among the user's newest events
    (`streaming.sequence_length`): it is dropped as a duplicate. Without event ids a repeat counts twice.
    """
    from services.dead_letter_view import outcome_view
    from services.dead_letters import Place, letters_at, letters_in, replayed_in
    from services.plain_text import console
    from services.redelivery import Redelivery
    from services.topic_reader import TopicReader
    from streaming.errors import StreamingError

    _check_choice(places, every, filtered=bool(reason or topic or since))
    loaded, selection = load(settings), _selection(reason, topic, since)
    out = console()
    try:
        chosen = [Place.parse(place) for place in places or ()]
        with TopicReader(loaded.kafka, loaded.kafka.dead_letter_topic) as reader:
            replayed = replayed_in(reader)
            for trial in (True, False):
                if trial and yes and not dry_run:
                    continue
                letters = letters_at(reader, chosen) if chosen else letters_in(reader, selection)
                work = Redelivery(loaded, replayed, force=force, again=again, dry_run=trial)
                outcome = work.run(letters)
                out.print(outcome_view(outcome, dry_run=trial))
                if dry_run or (trial and not outcome.sent):
                    break
                if trial and not typer.confirm(f"Send {outcome.sent:,} records?"):
                    raise typer.Exit(1)
    except StreamingError as error:
        fail(str(error), 1)


def _check_choice(places: list[str] | None, every: bool, filtered: bool) -> None:
    if not (places or every or filtered):
        fail(
            "which letters? Name places (0:17 0:18), or --reason TEXT, --topic TOPIC, --since TIME, or --all"
        )
    if places and (every or filtered):
        fail("expected either places or --all, --reason, --topic and --since, got both")


def _selection(reason: str | None, topic: str | None, since: str | None) -> "Selection":
    from services.dead_letters import Selection
    from services.plain_text import since_ms

    try:
        return Selection(reason, topic, None if since is None else since_ms(since))
    except ValueError as error:
        fail(f"--since: {error}")
