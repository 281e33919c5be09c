"""`headrace keys`: API keys for those who call the API."""

import json
from typing import Annotated, get_args

import typer

from services.commands import fail

app = typer.Typer(no_args_is_help=True, help="Make API keys for callers of the HTTP API.")


@app.callback()
def keys() -> None:
    """Keep `new` a command of its own: Typer would make it the whole of `keys`, as the only one."""


@app.command()
def new(
    scopes: Annotated[
        str, typer.Option(help="What the key allows: read, write, admin, separated by commas.")
    ] = "read",
    key_id: Annotated[
        str | None, typer.Option("--id", help="Its name: a-z, 0-9 and -; default: a random one.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead.")] = False,
) -> None:
    """Make a random API key.

    Prints the key, which is nowhere else, and the entry for the settings, which holds its hash only. Callers send the
    key as `X-API-Key` or as `Authorization: Bearer`. Nothing is written; replicas know it when they start with the
    entry. To rotate a key add a second one, move the callers, and remove the first.

    Example: `headrace keys new --scopes read,write --id shop`
    """
    from serving.security.config import Scope
    from serving.security.keys import make_key

    wanted = list(dict.fromkeys(name.strip() for name in scopes.split(",")))
    known = get_args(Scope)
    if unknown := [name for name in wanted if name not in known]:
        fail(f"--scopes: expected some of {', '.join(known)}, got {', '.join(map(repr, unknown))}")
    try:
        name, key, hashed = make_key(key_id)
    except ValueError as error:
        fail(f"--id: {error}")
    if as_json:
        typer.echo(json.dumps({"id": name, "key": key, "hash": hashed, "scopes": wanted}))
        return
    typer.echo(f"{key}\n")
    typer.echo("This is the key; it is shown this once. Add to the settings:\n", err=True)
    typer.echo("[[serving.security.keys]]")
    typer.echo(f'id = "{name}"')
    typer.echo(f'hash = "{hashed}"')
    typer.echo(f"scopes = {json.dumps(wanted)}")
