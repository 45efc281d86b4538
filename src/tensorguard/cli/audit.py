"""`tensorguard audit`: verify trails, in the database or offline, and export them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tensorguard.cli.gated import operator_settings
from tensorguard.errors import InputError
from tensorguard.platform.audit import administration
from tensorguard.platform.audit.chain import AuditBroken
from tensorguard.platform.audit.export import Progress, Verified

app = typer.Typer(help="Verify and export audit trails.", no_args_is_help=True)
console = Console(stderr=True)

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, one object per trail.")]
Trust = Annotated[
    Path | None,
    typer.Option(help="Public key of the heads: a *.pub.json file or a folder of them."),
]
Heads = Annotated[
    list[Path] | None, typer.Option("--head", help="A head's envelope that was kept elsewhere.")
]


class NoTrust(InputError):
    code = "no_trust"
    remedy = "Give --trust FILE.pub.json, from `tensorguard keys export-public audit-head`."


@contextmanager
def _progress(what: str) -> Iterator[Progress]:
    with console.status(what) as status:
        yield lambda count: status.update(f"{what}: {count:,} events")


def _show(found: Verified, *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(found.as_dict()))
        return
    typer.echo(
        f"{found.tenant}: {found.events} events hold, {found.heads} signed heads, "
        f"signed up to event {found.signed}"
    )
    if found.signed < found.events:
        console.print(
            f"note: nothing signed covers the {found.events - found.signed} newest events; "
            "a deletion among them would not show",
            highlight=False,
        )


@app.command()
def verify(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="An export, checked without any database or key.")
    ] = None,
    trust: Trust = None,
    head: Heads = None,
    as_json: AsJson = False,
) -> None:
    """Check every event and signed head. Exits 1 when a trail is broken, naming the event."""
    heads = head or []
    try:
        if export is not None:
            if trust is None:
                raise NoTrust("an export proves nothing without a public key that you trust")
            with _progress("Verifying") as progress:
                found = administration.verify_export(
                    export, trust=trust, heads=heads, progress=progress
                )
            _show(found, as_json=as_json)
            return
        settings = operator_settings()
        with _progress("Verifying") as progress:
            for found in administration.verify_stored(
                settings, tenant=tenant, trust=trust, heads=heads, progress=progress
            ):
                _show(found, as_json=as_json)
    except AuditBroken as error:
        if as_json:
            typer.echo(json.dumps({"result": "broken", "event": error.seq, "detail": str(error)}))
        raise


@app.command("export")
def export_trail(
    tenant: Annotated[str, typer.Option(help="Name of the tenant.")],
    out: Annotated[Path, typer.Option(help="File to write (0600), as JSON lines.")],
) -> None:
    """Sign the end of a trail and write the trail with its heads."""
    settings = operator_settings()
    with _progress("Exporting") as progress:
        count = administration.write_export(settings, tenant=tenant, path=out, progress=progress)
    typer.echo(f"{tenant}: {count} events -> {out}")
