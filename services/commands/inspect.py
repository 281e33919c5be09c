"""`headrace inspect`: what is in a topic, and which mapping suits it."""

from enum import StrEnum
from typing import Annotated

import typer

from services.commands import SettingsOption, fail, load


class Format(StrEnum):
    """How records are written."""

    JSON = "json"
    AVRO = "avro"


def inspect(
    topic: Annotated[str, typer.Option("--topic", metavar="TOPIC", help="Topic to look at.")],
    sample: Annotated[int, typer.Option(min=1, max=10_000, help="Newest records looked at.")] = 200,
    settings: SettingsOption = None,
    format_: Annotated[
        Format | None, typer.Option("--format", help="Instead of what the settings say of this topic.")
    ] = None,
) -> None:
    """Look into a topic: what its records hold, how many the present mapping accepts, and a mapping that suits.

    Samples the newest records over all partitions. Where the present mapping refuses some, it suggests a
    `[[streaming.sources]]` to paste into the settings, and says what share of the sample that accepts. Nothing is
    written or committed, and no consumer group is joined.
    """
    from services.inspection import inspect_topic
    from services.inspection_view import sample_view, snippet, suggestion_view, topic_view, unused
    from services.plain_text import console, printable
    from streaming.errors import StreamingError

    try:
        found = inspect_topic(load(settings), topic, sample, format_ and format_.value)
    except (StreamingError, ValueError) as error:
        fail(str(error), 1)
    out = console()
    out.print(topic_view(found))
    if not found.sampled:
        out.print("\nThe topic is empty: there is nothing to inspect yet.")
        return
    out.print(sample_view(found))
    if found.suits:
        out.print("\n[green]✔ The present mapping accepts the whole sample: no change is needed.[/]")
        for name, shape in unused(found):
            out.print(
                f"  {name} could be {printable(shape.path)!r}: the mapping finds none now", markup=False
            )
    elif found.framing is None and found.improves:
        out.print(suggestion_view(found))
        out.print(snippet(found), markup=False, soft_wrap=True)
    elif found.framing is None:
        out.print("\nNo other mapping accepts more: what is refused has to be mended where it is produced.")
