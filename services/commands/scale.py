"""`headrace scale`: other numbers of actors for a running pipeline."""

from typing import Annotated

import typer
from rich.console import Console

from services.commands import SettingsOption, fail, load


def scale(
    shards: Annotated[
        int | None, typer.Option(min=1, help="Actors that host the logical shards and apply events.")
    ] = None,
    ingestors: Annotated[
        int | None, typer.Option(min=1, help="Actors that read partitions; more than partitions have no use.")
    ] = None,
    settings: SettingsOption = None,
    url: Annotated[
        str | None,
        typer.Option(help="Where the API of the running Headrace is; default: as the settings say."),
    ] = None,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait for the move, seconds.")] = 120.0,
) -> None:
    """Change the number of shard actors or ingestors while the stream goes on.

    Whole logical shards move to other actors; the stream pauses for a second or two and then goes on from the lowest
    offset that a shard lacks, so nothing is lost or counted twice. The number of logical shards never changes.
    Sends the settings' `serving.admin_api_key` where there is one. For scaling by lag see `streaming.autoscale`.

    Example: `headrace scale --shards 4 --ingestors 2`
    """
    from services.client import ApiError
    from services.scaling import change_scale

    if shards is None and ingestors is None:
        fail("say what to scale: --shards N, --ingestors N or both")
    try:
        before, after, seconds = change_scale(load(settings), url, shards, ingestors, timeout)
    except (ApiError, TimeoutError) as error:
        fail(str(error))
    Console().print(
        f"shard actors {before[0]} → {after[0]}, ingestors {before[1]} → {after[1]}, after {seconds:.1f} s",
        highlight=False,
    )
