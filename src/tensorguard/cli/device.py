"""`tensorguard device`: enrol this machine and speak for it; for operators: invite, list, revoke."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Enrol this machine and speak for it.", no_args_is_help=True)

Url = Annotated[str, typer.Option(help="URL of the platform.")]
TokenFile = Annotated[Path, typer.Option(help="File with your session or API token, mode 0600.")]
Folder = Annotated[Path, typer.Option(help="Folder of the identity.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def enrol(
    url: Url,
    name: Annotated[str, typer.Option(help="Name of this device.")],
    out: Folder,
    token: Annotated[
        str | None, typer.Option(help="One-time enrolment token; others can see it in `ps`.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the enrolment token, mode 0600.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key, redeem the one-time token and keep the identity in a folder."""
    from tensorguard.sdk.device import DeviceIdentity
    from tensorguard.sdk.token_files import read_token

    if (token is None) == (token_file is None):
        raise typer.BadParameter("give --token-file, or --token")
    secret = token if token is not None else read_token(token_file or Path())
    with DeviceIdentity.enrol(url=url, token=secret, name=name, folder=out) as identity:
        record = identity.record
    if as_json:
        typer.echo(json.dumps({"device_id": record.device_id, "tenant": record.tenant}))
    else:
        typer.echo(f"enrolled {name} as {record.device_id}; its identity is in {out}")


@app.command()
def token(
    identity: Folder,
    serving: Annotated[
        bool, typer.Option("--serving", help="A grant for the gateway instead.")
    ] = False,
) -> None:
    """Print a fresh bearer token of this device, which lives 10 minutes."""
    from tensorguard.sdk.device import DeviceIdentity

    with DeviceIdentity.load(identity) as device:
        typer.echo(device.serving_grant() if serving else device.access_token())


@app.command()
def invite(
    url: Url,
    token_file: TokenFile,
    fleet: Annotated[str, typer.Option(help="Name of the fleet; made if it is absent.")],
    minutes: Annotated[int, typer.Option(min=1, max=1440, help="Life of the token.")] = 60,
    as_json: AsJson = False,
) -> None:
    """Make a one-time enrolment token for a fleet and print it, this once."""
    from tensorguard.sdk.fleet import FleetClient
    from tensorguard.sdk.token_files import read_token

    secret = read_token(token_file)
    with FleetClient(url, lambda: secret) as client:
        chosen = client.ensure_fleet(fleet)
        made = client.create_enrolment(chosen.id, expires_in=60 * minutes)
    typer.echo(made.model_dump_json() if as_json else made.token or "")


@app.command("list")
def list_devices(url: Url, token_file: TokenFile, as_json: AsJson = False) -> None:
    """List the tenant's devices."""
    from tensorguard.sdk.fleet import FleetClient
    from tensorguard.sdk.token_files import read_token

    secret = read_token(token_file)
    with FleetClient(url, lambda: secret) as client:
        for device in client.devices():
            state = "revoked" if device.revoked else "active"
            typer.echo(
                device.model_dump_json() if as_json else f"{device.id}  {state:<8} {device.name}"
            )


@app.command()
def revoke(
    device_id: Annotated[str, typer.Argument(help="Id of the device.")],
    url: Url,
    token_file: TokenFile,
    reason: Annotated[str, typer.Option(help="Why; it goes into the audit trail.")] = "",
    as_json: AsJson = False,
) -> None:
    """Revoke a device: no new token from now on; issued ones end within 10 minutes."""
    from tensorguard.sdk.fleet import FleetClient
    from tensorguard.sdk.token_files import read_token

    secret = read_token(token_file)
    with FleetClient(url, lambda: secret) as client:
        device = client.revoke(device_id, reason=reason)
    typer.echo(device.model_dump_json() if as_json else f"revoked {device.name} ({device.id})")
