"""`tensorguard infer`: evaluate a served model on inputs that only this process can read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer()  # one command, which `tensorguard` shows as its own
progress = Console(stderr=True)
MAX_TOKEN = 16 * 1024  # bytes; a grant has at most 8 KiB


@app.command()
def infer(
    url: Annotated[str, typer.Option(help="The gateway, such as https://serving.example.")],
    model: Annotated[str, typer.Option(help="Name of the model.")],
    inputs: Annotated[
        Path, typer.Option("--input", help="Rows of inputs: .npy, .json or .csv.", dir_okay=False)
    ],
    version: Annotated[str | None, typer.Option(help="Version. Default: the newest.")] = None,
    pack_id: Annotated[str | None, typer.Option(help="Refuse every other pack.")] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the serving grant; read again for each request. Default: stdin."
        ),
    ] = None,
    keys: Annotated[
        Path | None,
        typer.Option(
            help="Keystore of the secret key, sealed by TG_KEY_PROVIDER; made if absent. "
            "Default: memory."
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="File for the outputs: .npy, .json or .csv.")
    ] = None,
    clip: Annotated[
        bool, typer.Option("--clip", help="Clip inputs to the calibrated range, not refuse.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Encrypt inputs, have a gateway evaluate a model on them, and decrypt the outputs."""
    from tensorguard.sdk import batch
    from tensorguard.sdk.inference import InferenceClient
    from tensorguard.sdk.inputs import read_rows, write_rows
    from tensorguard.sdk.token_files import read_token

    given = sys.stdin.read(MAX_TOKEN).strip() if token_file is None else ""

    def token() -> str:
        if token_file is None:
            return given
        return read_token(token_file)

    rows = read_rows(inputs)
    client = InferenceClient(url, token, keys_path=keys, **_custody(keys))
    with client, progress.status("Keys") as status:
        opened = client.open(model, version=version, pack_id=pack_id)
        report = batch.predict(
            opened,
            rows,
            out_of_range="clip" if clip else "refuse",
            progress=lambda done: status.update(f"{done} of {len(rows)} rows"),
        )
    if output is not None:
        write_rows(output, report.outputs)
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
        return
    if output is None:
        for row in report.outputs:
            typer.echo(" ".join(f"{value:.9g}" for value in row))
    for line in report.lines():
        progress.print(line, highlight=False)


def _custody(keys: Path | None) -> dict[str, Any]:
    """Return how a keystore is sealed: a plain one is for development, and only if nobody can seal."""
    from tensorguard.gates import Role, enforce
    from tensorguard.keys.registry import open_provider
    from tensorguard.settings import Settings

    if keys is None:
        return {}
    settings = enforce(Settings.from_environment(), Role.client)
    if settings.key_provider is not None:
        return {"key_provider": open_provider(settings)}
    return {"unsafe_plain_keys": not settings.production}
