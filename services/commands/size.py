"""`headrace size`: how much machine a load needs."""

import json
from typing import Annotated

import typer

from services.commands import fail


def size(
    events_per_s: Annotated[
        float, typer.Option("--events-per-s", min=0, help="Events per second at the height of the day.")
    ] = 1000.0,
    users: Annotated[float, typer.Option(min=0, help="Users who are remembered; 1e6 will do.")] = 1e6,
    items: Annotated[float, typer.Option(min=0, help="Items of the catalogue.")] = 50_000.0,
    requests_per_s: Annotated[
        float, typer.Option("--requests-per-s", min=0, help="Rankings per second at the height of the day.")
    ] = 200.0,
    price: Annotated[
        str | None,
        typer.Option(
            metavar="CORE,MEMORY,DISK", help="Prices per month: of a core, a GiB of memory, a GiB of disk."
        ),
    ] = None,
    hot_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the users whose rows stay in the page cache.")
    ] = 0.2,
    busy: Annotated[
        float, typer.Option(min=0.05, max=1, help="How full cores are planned; the rest is for peaks.")
    ] = 0.5,
    mean_share: Annotated[
        float, typer.Option(min=0, max=1, help="Events of a day on average, as a share of its height.")
    ] = 0.4,
    keep_days: Annotated[
        float, typer.Option(min=0, help="Days that windows are kept here, and events in Kafka.")
    ] = 14.0,
    event_bytes: Annotated[
        float, typer.Option(min=1, help="Bytes of a record in Kafka, compressed.")
    ] = 200.0,
    confluent: Annotated[bool, typer.Option("--confluent", help='With kafka.client = "confluent".')] = False,
    gpu: Annotated[bool, typer.Option("--gpu", help="The learner has a pod of its own with a GPU.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    sources: Annotated[
        bool,
        typer.Option(
            "--sources", help="Print every measured figure, its report, and the command that made it."
        ),
    ] = False,
) -> None:
    """Reckon cores, memory, disk and settings for a load, from what was measured.

    Each figure behind it is from a report in docs/results (`--sources`); what is an assumption is an option. It is a
    plan: the figures are of two shared cores of one kind, and beyond what was measured they are straight lines, which
    it says. `make bench-stream` and `make bench-serve` measure yours.

    Example: `headrace size --events-per-s 5000 --users 2e6 --items 80000 --requests-per-s 500 --price 25,3,0.1`
    """
    from services.plain_text import console
    from services.sizing import Load
    from services.sizing import size as reckon
    from services.sizing_view import size_json, size_view, sources_view

    if sources:
        console().print(sources_view())
        return
    prices = _prices(price)
    plan = reckon(
        Load(
            events_per_s,
            users,
            items,
            requests_per_s,
            hot_share,
            busy,
            mean_share,
            keep_days,
            event_bytes,
            confluent,
            gpu,
        )
    )
    if as_json:
        typer.echo(json.dumps(size_json(plan, prices), indent=2))
    else:
        console().print(size_view(plan, prices))


def _prices(text: str | None) -> list[float] | None:
    if text is None:
        return None
    try:
        core, memory, disk = map(float, text.split(","))
    except ValueError:
        fail(
            f"--price: expected prices of a core, a GiB of memory and a GiB of disk, such as 25,3,0.1; got {text!r}"
        )
    return [core, memory, disk]
