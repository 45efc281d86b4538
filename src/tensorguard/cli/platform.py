"""`tensorguard platform`: run the control plane."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(help="Run the platform.", no_args_is_help=True)


@app.callback()
def platform() -> None:
    """Keep `platform` a group of commands."""


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(min=0, max=65535, help="Default: 8443 with TLS here, 8080 without."),
    ] = None,
) -> None:
    """Run the platform until it is told to stop. Exits with 78 when a gate refuses."""
    from tensorguard.platform.run import serve as run

    run(host, port)
