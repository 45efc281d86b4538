"""`tensorguard user`: people, made on the machine. A password is never an argument."""

from __future__ import annotations

import json
import secrets
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from tensorguard.cli.gated import operator_settings
from tensorguard.crypto.files import read_bounded
from tensorguard.errors import InputError
from tensorguard.platform import administration
from tensorguard.platform.administration import Account
from tensorguard.platform.principal import Role

app = typer.Typer(help="Create, list and disable people.", no_args_is_help=True)

MAX_PASSWORD_FILE = 4096  # bytes
GENERATED_BYTES = 18  # 144 random bits

Tenant = Annotated[str, typer.Option(help="Name of the tenant.")]
Username = Annotated[str, typer.Option(help="Name to sign in with.")]
PasswordFile = Annotated[
    Path | None, typer.Option(help="File whose first line is the password; `-` is stdin.")
]
Generate = Annotated[bool, typer.Option("--generate", help="Make a password and print it once.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class NoPassword(InputError):
    code = "no_password"
    remedy = "Give --password-file FILE, --generate, or type it at the prompt of a terminal."


def _password(file: Path | None, *, generate: bool) -> str:
    if generate and file is not None:
        raise NoPassword("--generate and --password-file exclude each other")
    if generate:
        return secrets.token_urlsafe(GENERATED_BYTES)
    if file is None:
        if not sys.stdin.isatty():
            raise NoPassword("no password was given, and there is no terminal to ask at")
        return str(typer.prompt("Password", hide_input=True, confirmation_prompt=True))
    if str(file) == "-":
        return sys.stdin.readline(MAX_PASSWORD_FILE).rstrip("\r\n")
    lines = read_bounded(file, limit=MAX_PASSWORD_FILE, private=True).decode().splitlines()
    return lines[0] if lines else ""


def _show(account: Account, password: str | None, *, as_json: bool) -> None:
    if as_json:
        shown = asdict(account) | ({"password": password} if password else {})
        typer.echo(json.dumps(shown))
        return
    state = " (disabled)" if account.disabled else ""
    typer.echo(f"{account.tenant} / {account.username}: {account.role.value}{state}")
    if password:
        typer.echo(f"password: {password}")


@app.command("create-admin")
def create_admin(
    tenant: Tenant,
    username: Username,
    password_file: PasswordFile = None,
    generate: Generate = False,
    as_json: AsJson = False,
) -> None:
    """Make an administrator, and the tenant if it is absent."""
    settings = operator_settings()
    password = _password(password_file, generate=generate)
    account = administration.create_admin(
        settings, tenant=tenant, username=username, password=password
    )
    _show(account, password if generate else None, as_json=as_json)


@app.command()
def create(
    tenant: Tenant,
    username: Username,
    role: Annotated[Role, typer.Option(help="What the person may do.")],
    password_file: PasswordFile = None,
    generate: Generate = False,
    as_json: AsJson = False,
) -> None:
    """Make an account in a tenant that exists."""
    settings = operator_settings()
    password = _password(password_file, generate=generate)
    account = administration.create_user(
        settings, tenant=tenant, username=username, password=password, role=role
    )
    _show(account, password if generate else None, as_json=as_json)


@app.command("list")
def list_users(
    tenant: Annotated[str | None, typer.Option(help="Only this tenant.")] = None,
    as_json: AsJson = False,
) -> None:
    """List the accounts; as JSON, one object per line."""
    for account in administration.list_users(operator_settings(), tenant=tenant):
        _show(account, None, as_json=as_json)


@app.command()
def disable(tenant: Tenant, username: Username, as_json: AsJson = False) -> None:
    """Ban an account and end its sessions and tokens."""
    account = administration.disable_user(operator_settings(), tenant=tenant, username=username)
    _show(account, None, as_json=as_json)
