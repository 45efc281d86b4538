"""`tensorguard keys`: the life and the use of keys. Private bytes never leave the provider."""

from __future__ import annotations

import base64
import json
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from tensorguard.cli.gated import operator_settings
from tensorguard.crypto import canonical
from tensorguard.crypto.files import private_folder, read_bounded, write_atomic
from tensorguard.crypto.hybrid import unbase64
from tensorguard.errors import InputError, MalformedInput
from tensorguard.keys.provider import (
    Algorithm,
    KeyId,
    KeyInfo,
    KeyProvider,
    KeyState,
    PublicKey,
    Purpose,
    Signature,
    key_id,
)
from tensorguard.keys.registry import open_provider
from tensorguard.settings import Settings

app = typer.Typer(help="Make, rotate, use and retire keys.", no_args_is_help=True)
progress = Console(stderr=True)


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
MAX_FILE: Final = 64 << 20  # bytes that one signature covers
MAX_SIGNATURE_FILE: Final = 16_384

Key = Annotated[str, typer.Argument(metavar="KEY", help="Id: a-z, 0-9 and -.")]
VersionOption = Annotated[int, typer.Option("--version", min=1, help="Which version.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Message = Annotated[Path, typer.Argument(metavar="FILE", help="What is signed: its bytes.")]


class WrongSuffix(InputError):
    code = "wrong_suffix"
    remedy = f"Let --out end in {PUBLIC_SUFFIX}: trust stores read no other files."


def _opened() -> tuple[Settings, KeyProvider]:
    settings = operator_settings()
    return settings, open_provider(settings)


def _row(info: KeyInfo) -> dict[str, Any]:
    row: dict[str, Any] = {
        "key_id": info.key_id,
        "version": info.version,
        "algorithm": info.algorithm.value,
        "purpose": info.purpose.value,
        "state": info.state.value,
        "created": info.created.isoformat(),
        "disabled": info.disabled,
    }
    if info.destroy_at is not None:
        row["destroy_at"] = info.destroy_at.isoformat()
    return row


def _show(info: KeyInfo, *, as_json: bool) -> None:
    row = _row(info)
    if as_json:
        typer.echo(json.dumps(row))
        return
    state = "disabled" if info.disabled else info.state.value
    typer.echo(
        f"{row['key_id']:<24} v{row['version']:<3} {row['algorithm']:<18} "
        f"{row['purpose']:<14} {state:<12} {row['created']}"
    )


# --- looking ------------------------------------------------------------------------------------


@app.command("list")
def list_keys(as_json: AsJson = False) -> None:
    """List the keys; as JSON, one object per line."""
    _, provider = _opened()
    for info in provider.list_keys():
        _show(info, as_json=as_json)


@app.command()
def show(
    key: Key,
    versions: Annotated[bool, typer.Option("--versions", help="One line per version.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show what is known of a key without using it."""
    _, provider = _opened()
    for info in provider.versions(key_id(key)) if versions else (provider.describe(key_id(key)),):
        _show(info, as_json=as_json)


@app.command("export-public")
def export_public(
    key: Key,
    out: Annotated[
        Path, typer.Option(help="A file (of a hybrid key *.pub.json); with --all a folder.")
    ],
    name: Annotated[str | None, typer.Option(help="The signer's name. Default: KEY.")] = None,
    version: Annotated[int | None, typer.Option(min=1, help="Default: the active one.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every version that is not destroyed, one file each.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Write public keys: a trust-store file for a hybrid key, a JWKS for others."""
    _, provider = _opened()
    chosen = key_id(key)
    if every:
        _export_all(provider, chosen, out, name or key, as_json=as_json)
        return
    public = provider.public_key(chosen, version)
    if public.algorithm is Algorithm.hybrid:
        if not out.name.endswith(PUBLIC_SUFFIX):
            raise WrongSuffix(f"{out.name} would not be read by a trust store")
        data = public.hybrid().to_json(name=name or key)
    else:
        data = _jwks(public)
    _exported(out, data, key, [public.version], as_json=as_json)


def _jwks(*keys: PublicKey) -> bytes:
    return json.dumps({"keys": [key.jwk() for key in keys]}, sort_keys=True).encode() + b"\n"


def _exported(path: Path, data: bytes, key: str, versions: list[int], *, as_json: bool) -> None:
    write_atomic(path, data, mode=0o644)
    if as_json:
        typer.echo(json.dumps({"key_id": key, "out": str(path), "versions": versions}))
    else:
        typer.echo(f"{key} v{', v'.join(map(str, versions))} -> {path}")


def _export_all(
    provider: KeyProvider, key: KeyId, folder: Path, name: str, *, as_json: bool
) -> None:
    keys = [
        provider.public_key(key, info.version)
        for info in provider.versions(key)
        if info.state is not KeyState.destroyed
    ]
    private_folder(folder)
    if provider.describe(key).algorithm is not Algorithm.hybrid:
        numbers = [public.version for public in keys]
        path = folder / f"{key}.jwks.json"
        _exported(path, _jwks(*reversed(keys)), key, numbers, as_json=as_json)
        return
    for public in keys:
        path = folder / f"{public.kid}{PUBLIC_SUFFIX}"
        data = public.hybrid().to_json(name=f"{name}.{public.version}")
        _exported(path, data, key, [public.version], as_json=as_json)


# --- changing -----------------------------------------------------------------------------------


@app.command()
def create(
    key: Key,
    purpose: Annotated[Purpose, typer.Option(help="What the key is for; it does nothing else.")],
    algorithm: Annotated[Kind | None, typer.Option(help="Default: the purpose's own.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key inside the provider."""
    from tensorguard.platform.keys.administration import recorded

    settings, provider = _opened()
    chosen = USUAL[purpose] if algorithm is None else ALGORITHMS[algorithm]
    with recorded(settings, "key.created", key_id(key), purpose=purpose, algorithm=chosen):
        info = provider.create(key_id(key), algorithm=chosen, purpose=purpose)
    _show(info, as_json=as_json)


@app.command()
def rotate(key: Key, as_json: AsJson = False) -> None:
    """Put a fresh version in use; what older ones signed or wrapped is good until they retire."""
    from tensorguard.platform.keys import administration

    settings, provider = _opened()
    _show(administration.rotate(settings, provider, key_id(key)), as_json=as_json)


@app.command()
def stage(key: Key, as_json: AsJson = False) -> None:
    """Make the version that the next rotation puts in use, so that its public key can be spread."""
    from tensorguard.platform.keys.administration import recorded

    settings, provider = _opened()
    with recorded(settings, "key.staged", key_id(key)):
        info = provider.stage(key_id(key))
    _show(info, as_json=as_json)


@app.command()
def retire(key: Key, version: VersionOption, as_json: AsJson = False) -> None:
    """End a version that was replaced: it opens nothing any more."""
    from tensorguard.platform.keys import administration

    settings, provider = _opened()
    _show(administration.retire(settings, provider, key_id(key), version), as_json=as_json)


@app.command()
def disable(key: Key, as_json: AsJson = False) -> None:
    """Refuse every use of a key until it is enabled."""
    from tensorguard.platform.keys.administration import recorded

    settings, provider = _opened()
    with recorded(settings, "key.disabled", key_id(key)):
        info = provider.disable(key_id(key))
    _show(info, as_json=as_json)


@app.command()
def enable(key: Key, as_json: AsJson = False) -> None:
    """Undo `disable`."""
    from tensorguard.platform.keys.administration import recorded

    settings, provider = _opened()
    with recorded(settings, "key.enabled", key_id(key)):
        info = provider.enable(key_id(key))
    _show(info, as_json=as_json)


@app.command()
def destroy(
    key: Key,
    version: VersionOption,
    delay_days: Annotated[float, typer.Option(min=0, max=365, help="AWS KMS: 7 to 30.")] = 7.0,
    cancel: Annotated[bool, typer.Option("--cancel", help="Call it off.")] = False,
    as_json: AsJson = False,
) -> None:
    """Have a retired version destroyed, for good, after a delay."""
    from tensorguard.platform.keys import administration

    settings, provider = _opened()
    chosen = key_id(key)
    administration.check_destroyable(provider.describe(chosen))
    if cancel:
        with administration.recorded(
            settings, "key.destruction_cancelled", chosen, version=version
        ):
            info = provider.cancel_destruction(chosen, version)
    else:
        delay = timedelta(days=delay_days)
        seconds = int(delay.total_seconds())
        with administration.recorded(
            settings, "key.destruction_scheduled", chosen, version=version, delay_seconds=seconds
        ):
            info = provider.destroy(chosen, version, delay=delay)
    _show(info, as_json=as_json)


@app.command()
def rewrap(
    new_master_env: Annotated[
        str | None,
        typer.Option(metavar="VARIABLE", help="Variable with the new master of the file provider."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Seal everything anew: keys under a new master, or stored secrets under the active version.

    Killed at any point, it goes on when it is called again.
    """
    from tensorguard.platform.keys import administration

    if new_master_env is None:
        settings, provider = _opened()
        count = administration.rewrap_stored(settings, provider)
        typer.echo(json.dumps({"secrets": count}) if as_json else f"{count} secrets rewrapped")
        return
    new = Settings.named_secret(new_master_env)
    settings = operator_settings(key_master_new=new)
    with progress.status("Sealing keys under the new master") as status:
        count = administration.rewrap_master(
            settings,
            open_provider(settings),
            new,
            progress=lambda key: status.update(f"Sealing keys under the new master: {key}"),
        )
    typer.echo(
        json.dumps({"keys": count})
        if as_json
        else f"{count} keys sealed under {new_master_env}; make it TG_KEY_MASTER now"
    )


# --- using --------------------------------------------------------------------------------------


@app.command()
def sign(
    key: Key,
    message: Message,
    out: Annotated[Path | None, typer.Option(help="Where to. Default: standard output.")] = None,
    as_json: AsJson = False,
) -> None:
    """Sign the bytes of FILE with the active version; the signature is one JSON object."""
    from tensorguard.platform.keys.administration import recorded

    settings, provider = _opened()
    data = read_bounded(message, limit=MAX_FILE)
    with recorded(settings, "key.signed", key_id(key), what=message.name[:200]) as event:
        event.check_usable()
        made = provider.sign(key_id(key), data)
    text = json.dumps(
        {
            "algorithm": made.algorithm.value,
            "key_id": made.key_id,
            "signature": base64.b64encode(made.value).decode(),
            "version": made.version,
        }
    )
    if out is not None:
        write_atomic(out, text.encode() + b"\n", mode=0o644)
    typer.echo(text if out is None or as_json else f"{key} v{made.version} -> {out}")


@app.command()
def verify(
    key: Key,
    message: Message,
    signature: Annotated[Path, typer.Option(help="What `sign` wrote.")],
    as_json: AsJson = False,
) -> None:
    """Check a signature by the version that made it. Exits 1 if it does not hold."""
    _, provider = _opened()
    data = read_bounded(message, limit=MAX_FILE)
    said = _signature(read_bounded(signature, limit=MAX_SIGNATURE_FILE))
    provider.verify(key_id(key), data, said)
    answer = {"key_id": said.key_id, "result": "ok", "version": said.version}
    typer.echo(json.dumps(answer) if as_json else f"{key} v{said.version}: the signature holds")


def _signature(data: bytes) -> Signature:
    value = canonical.parse(data, limit=MAX_SIGNATURE_FILE)
    try:
        return Signature(
            key_id(value["key_id"]),
            int(value["version"]),
            Algorithm(value["algorithm"]),
            unbase64(value["signature"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedInput("this is not a signature of `tensorguard keys sign`") from error
