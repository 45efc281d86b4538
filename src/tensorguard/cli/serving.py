"""`tensorguard serving`: run the MOAI gateway."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Serve models on encrypted data.", no_args_is_help=True)


@app.callback()
def serving() -> None:
    """Keep `serving` a group of commands."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on.")] = 8090,
) -> None:
    """Run the gateway until it is told to stop. Exits with 78 when a gate refuses."""
    from tensorguard.serving.run import serve as run

    run(host, port)
