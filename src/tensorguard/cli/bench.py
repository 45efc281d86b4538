"""`tensorguard bench`: measure the claims of the documentation on this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from tensorguard.bench.report import Ratio, Report

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
                f"({ratio.metric}){_bar(ratio)}"
            )
        for name in report.missing:
            typer.echo(f"missing: {name}")
    if check and report.failed:
        raise typer.Exit(1)


def _bar(ratio: Ratio) -> str:
    if ratio.bar is None:
        return ""
    return f", bar {ratio.bar:g}: {'holds' if ratio.holds else 'MISSED'}"


@app.command()
def inference(
    as_json: AsJson = False,
    quick: Quick = False,
    check: Check = False,
    case: Annotated[list[str] | None, typer.Option(help="Only this case; may be repeated.")] = None,
    rounds: Annotated[
        int,
        typer.Option(
            min=1,
            help="Of each variant. Below 50, classes and errors are looked at as with --quick.",
        ),
    ] = 50,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=PYTHON",
            help="A peer and the interpreter that has it, such as orion=peers/orion/bin/python.",
        ),
    ] = None,
) -> None:
    """Encrypted inference beside naive TenSEAL and Orion: server time, CPU, error and classes."""
    from tensorguard.bench import inference as runner

    peers = {}
    for option in peer or []:
        name, equals, python = option.partition("=")
        if not equals or not python:
            raise typer.BadParameter("a peer is NAME=PYTHON", param_hint="--peer")
        peers[name] = Path(python)
    with progress.status("Training and encrypting") as status:
        report = runner.run(
            quick=quick,
            progress=status.update,
            cases=runner.choose(case or []),
            peers=peers,
            rounds=rounds,
        )
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
