"""`tensorguard bench`: measure the claims of the documentation on this machine."""

from __future__ import annotations

import json
from typing import Annotated

import typer
from rich.console import Console

from tensorguard.bench.report import Report

app = typer.Typer(help="Measure on this machine, beside what others do.", no_args_is_help=True)
progress = Console(stderr=True)


@app.callback()
def bench() -> None:
    """Keep `bench` a group of commands."""


AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Quick = Annotated[bool, typer.Option("--quick", help="Fewer rounds: under 50 s.")]
Check = Annotated[bool, typer.Option("--check", help="Exit 1 if a bar is missed.")]


def _print(report: Report, *, as_json: bool, check: bool) -> None:
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
                f"{ratio.case:<16} {ratio.variant} is {ratio.value:.3g}x {ratio.against} "
                f"({ratio.metric})"
            )
        for name in report.missing:
            typer.echo(f"missing: {name}")
    if check and report.failed:
        raise typer.Exit(1)


@app.command()
def inference(as_json: AsJson = False, quick: Quick = False, check: Check = False) -> None:
    """Encrypted inference beside naive TenSEAL: server time, CPU and error."""
    from tensorguard.bench import inference as runner

    with progress.status("Training and encrypting") as status:
        report = runner.run(quick=quick, progress=status.update)
    _print(report, as_json=as_json, check=check)


@app.command()
def keys(as_json: AsJson = False, quick: Quick = False, check: Check = False) -> None:
    """Microseconds per use of a key, for every provider beside raw `cryptography`."""
    from tensorguard.bench import keys as runner

    with progress.status("Starting the custodies") as status:
        report = runner.run(quick=quick, progress=status.update)
    _print(report, as_json=as_json, check=check)


@app.command()
def telemetry(as_json: AsJson = False, quick: Quick = False, check: Check = False) -> None:
    """Telemetry intake and queries beside raw COPY and a plain ORM endpoint, on PostgreSQL."""
    from tensorguard.bench import telemetry as runner

    with progress.status("Starting") as status:
        report = runner.run(quick=quick, progress=status.update)
    _print(report, as_json=as_json, check=check)
