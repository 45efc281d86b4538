"""`tensorguard bench`: measure the claims of the documentation on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

app = typer.Typer(help="Measure on this machine, beside what others do.", no_args_is_help=True)
progress = Console(stderr=True)


@app.callback()
def bench() -> None:
    """Keep `bench` a group of commands."""


@app.command()
def inference(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer rounds: under 50 s.")] = False,
    check: Annotated[bool, typer.Option("--check", help="Exit 1 if a bar is missed.")] = False,
) -> None:
    """Encrypted inference beside naive TenSEAL: server time, CPU and error."""
    from tensorguard.bench import inference as runner

    with progress.status("Training and encrypting") as status:
        report = runner.run(quick=quick, progress=status.update)
    if as_json:
        typer.echo(json.dumps(report.to_dict()))
    else:
        for result in report.results:
            typer.echo(
                f"{result.case:<16} {result.variant:<14} {result.metric:<6} "
                f"{result.median:>10.3g} {result.unit:<8} n={result.n}"
            )
        for ratio in report.ratios:
            typer.echo(
                f"{ratio.case:<16} {ratio.variant} is {ratio.value:.1f}x {ratio.against} "
                f"({ratio.metric})"
            )
        for name in report.missing:
            typer.echo(f"missing: {name}")
    if check and report.failed:
        raise typer.Exit(1)
