"""`tensorguard keys`: make and show keys; export public ones. Private bytes never leave the provider."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import typer

from tensorguard.cli.gated import operator_settings
from tensorguard.crypto.files import write_atomic
from tensorguard.errors import InputError
from tensorguard.keys.provider import Algorithm, KeyInfo, KeyProvider, Purpose, key_id
from tensorguard.keys.registry import open_provider

app = typer.Typer(help="Make and show keys; export public ones.", no_args_is_help=True)


class Kind(StrEnum):
    """An algorithm, as it is typed."""

    ed25519 = "ed25519"
    es256 = "es256"
    hybrid = "hybrid"
    aes256_gcm = "aes256-gcm"


ALGORITHMS: Final = {kind: Algorithm[kind.name] for kind in Kind}
USUAL: Final = {
    Purpose.pack_signing: Algorithm.hybrid,
    Purpose.audit_head: Algorithm.hybrid,
    Purpose.fleet_ca: Algorithm.es256,
    Purpose.token_signing: Algorithm.ed25519,
    Purpose.data_at_rest: Algorithm.aes256_gcm,
}
PUBLIC_SUFFIX: Final = ".pub.json"

Key = Annotated[str, typer.Argument(metavar="KEY", help="Id: a-z, 0-9 and -.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class WrongSuffix(InputError):
    code = "wrong_suffix"
    remedy = f"Let --out end in {PUBLIC_SUFFIX}: trust stores read no other files."


def _provider() -> KeyProvider:
    return open_provider(operator_settings())


def _row(info: KeyInfo) -> dict[str, str | int]:
    return {
        "key_id": info.key_id,
        "version": info.version,
        "algorithm": info.algorithm.value,
        "purpose": info.purpose.value,
        "state": info.state.value,
        "created": info.created.isoformat(),
    }


def _show(info: KeyInfo, *, as_json: bool) -> None:
    row = _row(info)
    if as_json:
        typer.echo(json.dumps(row))
        return
    typer.echo(
        f"{row['key_id']:<24} v{row['version']:<3} {row['algorithm']:<18} "
        f"{row['purpose']:<14} {row['state']:<12} {row['created']}"
    )


@app.command()
def create(
    key: Key,
    purpose: Annotated[Purpose, typer.Option(help="What the key is for; it does nothing else.")],
    algorithm: Annotated[Kind | None, typer.Option(help="Default: the purpose's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key inside the provider."""
    chosen = USUAL[purpose] if algorithm is None else ALGORITHMS[algorithm]
    info = _provider().create(key_id(key), algorithm=chosen, purpose=purpose)
    _show(info, as_json=as_json)


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys; as JSON, one object per line."""
    for info in _provider().list_keys():
        _show(info, as_json=as_json)


@app.command()
def show(key: Key, as_json: AsJson = False) -> None:
    """Show what is known of a key without using it."""
    _show(_provider().describe(key_id(key)), as_json=as_json)


@app.command("export-public")
def export_public(
    key: Key,
    out: Annotated[Path, typer.Option(help="Where to; a hybrid key's file ends in .pub.json.")],
    name: Annotated[str | None, typer.Option(help="The signer's name. Default: KEY.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the active one.")] = None,
) -> None:
    """Write the public key: a trust-store file for hybrid keys, a JWKS for others."""
    public = _provider().public_key(key_id(key), version)
    if public.algorithm is Algorithm.hybrid:
        if not out.name.endswith(PUBLIC_SUFFIX):
            raise WrongSuffix(f"{out.name} would not be read by a trust store")
        data = public.hybrid().to_json(name=name or key)
    else:
        data = json.dumps({"keys": [public.jwk()]}, sort_keys=True).encode() + b"\n"
    write_atomic(out, data, mode=0o644)
    typer.echo(f"{key} v{public.version} -> {out}")
