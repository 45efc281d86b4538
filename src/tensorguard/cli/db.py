"""`tensorguard db`: migrate the platform's database."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from tensorguard.cli.gated import operator_settings
from tensorguard.platform import administration
from tensorguard.platform.db import revision

app = typer.Typer(help="Migrate the platform's database.", no_args_is_help=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask on a terminal.")]


@app.command()
def upgrade(
    to: Annotated[str, typer.Argument(metavar="REVISION", help="Where to.")] = "head",
) -> None:
    """Migrate up, by default to the newest revision."""
    with administration.engine_of(operator_settings()) as engine:
        before = revision.current(engine)
        revision.upgrade(engine, to)
        typer.echo(f"{before or 'empty'} -> {revision.current(engine)}")


@app.command()
def downgrade(
    to: Annotated[str, typer.Argument(metavar="REVISION", help="Where to; `base` drops all.")],
    yes: Yes = False,
) -> None:
    """Migrate down. The rows of the tables that go are lost."""
    settings = operator_settings()
    if sys.stdin.isatty() and not yes:
        typer.confirm(f"Migrate down to {to} and lose what later tables hold?", abort=True)
    with administration.engine_of(settings) as engine:
        before = revision.current(engine)
        revision.downgrade(engine, to)
        typer.echo(f"{before or 'empty'} -> {revision.current(engine) or 'empty'}")


@app.command()
def current(as_json: AsJson = False) -> None:
    """Show the revision of the database and the newest one."""
    with administration.engine_of(operator_settings()) as engine:
        found, head = revision.current(engine), revision.head()
    if as_json:
        typer.echo(json.dumps({"current": found, "head": head}))
    else:
        typer.echo(f"{found or 'empty'} (newest: {head})")


@app.command()
def check() -> None:
    """Exit 0 if the database is at the newest revision and its tables match the models."""
    with administration.engine_of(operator_settings()) as engine:
        typer.echo(f"{revision.check(engine)}: newest, and the tables match")
