"""`headrace scale`: other numbers of actors for a running pipeline."""

from typing import Annotated

import typer
from rich.console import Console

from services.commands import KeyOption, SettingsOption, UrlOption, fail, load


def scale(
    shards: Annotated[
        int | None, typer.Option(min=1, help="Actors that host the logical shards and apply events.")
    ] = None,
    ingestors: Annotated[
        int | None, typer.Option(min=1, help="Actors that read partitions; more than partitions have no use.")
    ] = None,
    settings: SettingsOption = None,
    url: UrlOption = None,
    key: KeyOption = None,
    timeout: Annotated[float, typer.Option(min=1, help="Longest wait for the move, seconds.")] = 120.0,
) -> None:
    """Change the number of shard actors or ingestors while the stream goes on.

    Whole logical shards move to other actors; the stream pauses for a second or two and then goes on from the lowest
    offset that a shard lacks, so nothing is lost or counted twice. The number of logical shards never changes.
    For scaling by lag see `streaming.autoscale`; how many a load needs, `headrace size` tells.

    Example: `HEADRACE_API_KEY=hr_ops_… headrace scale --shards 4 --ingestors 2`
    """
    from services.client import ApiError
    from services.scaling import change_scale

    if shards is None and ingestors is None:
        fail("say what to scale: --shards N, --ingestors N or both")
    try:
        before, after, seconds = change_scale(load(settings), url, key, shards, ingestors, timeout)
    except (ApiError, TimeoutError) as error:
        fail(str(error))
    Console().print(
        f"shard actors {before[0]} → {after[0]}, ingestors {before[1]} → {after[1]}, after {seconds:.1f} s",
        highlight=False,
    )
