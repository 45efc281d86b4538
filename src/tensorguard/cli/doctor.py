"""`tensorguard doctor`: every production gate of a role, with pass, fail or relaxed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Final

import typer
from rich.console import Console
from rich.table import Table

from tensorguard import gates
from tensorguard.errors import EX_CONFIG, ConfigurationError
from tensorguard.gates import Finding, Probes, Role
from tensorguard.keys import development, self_test
from tensorguard.settings import Settings, variables

app = typer.Typer()

COLOURS: Final[Mapping[str, str]] = {"pass": "green", "fail": "red", "relaxed": "yellow"}


def _probes(role: Role) -> Probes:
    # Each app's own probes, so that the table says what its start would say.
    if role is Role.platform:
        from tensorguard.platform.app import PROBES

        return PROBES
    if role is Role.serving:
        from tensorguard.serving.app import PROBES as SERVING_PROBES

        return SERVING_PROBES
    return Probes(key_provider=self_test.probe)


def _settings() -> Settings:
    settings = Settings.from_environment()
    try:
        return development.complete(settings)
    except ConfigurationError:  # the gates say what is wrong
        return settings


def _print(role: Role, findings: tuple[Finding, ...]) -> None:
    table = Table("gate", "result", "refuses", "what is wrong, and what to do", title=role.value)
    for finding in findings:
        result = str(finding.as_dict()["result"])
        detail = f"{finding.detail} {finding.gate.remedy}" if finding.detail else ""
        table.add_row(
            finding.gate.id, f"[{COLOURS[result]}]{result}[/]", finding.gate.refuses, detail
        )
    Console().print(table)


@app.command()
def doctor(
    role: Annotated[Role, typer.Option(help="What this machine is to run.")] = Role.platform,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every production gate with pass or fail. Exits 78 when one refuses."""
    settings = _settings()
    findings = gates.inspect(settings, role, _probes(role))
    if as_json:
        report = {
            "environment": settings.environment.value,
            "role": role.value,
            "gates": [finding.as_dict() for finding in findings],
            "variables": [
                {"name": row.name, "meaning": row.meaning, "default": row.default}
                for row in variables()
            ],
        }
        typer.echo(json.dumps(report))
    else:
        _print(role, findings)
    if any(finding.applies and finding.detail for finding in findings):
        raise typer.Exit(EX_CONFIG)
