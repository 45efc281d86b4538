"""The command line: one table of areas, each loaded when it is asked for; errors are two lines.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage, 78 the configuration must change.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Final, NoReturn

import typer

from tensorguard import __version__

if TYPE_CHECKING:
    from tensorguard.errors import TensorGuardError

EX_FAILED: Final = 1

AREAS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "platform": "Run the platform.",
        "serving": "Run the MOAI gateway.",
        "db": "Migrate the platform's database.",
        "user": "Create, list and disable people.",
        "keys": "Make, rotate, use and retire keys; export public ones.",
        "audit": "Verify and export audit trails.",
        "device": "Enrol this machine and speak for it.",
        "agent": "Run the agent of a robot, import recordings, see what it holds.",
        "submissions": "See, replay and drop samples that a platform refused for good.",
        "pack": "Build, inspect, verify and simulate model packs.",
        "infer": "Evaluate a served model on inputs that only you can read.",
        "bench": "Measure on this machine, beside what others do.",
        "doctor": "Show every production gate with pass or fail.",
    }
)

root = typer.Typer(
    name="tensorguard",
    help="A control plane for machine learning on robot fleets.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"tensorguard {__version__}")
        raise typer.Exit


@root.callback()
def tensorguard(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """Run one command of the area that is named."""


def _register(name: str, text: str) -> None:
    # These stand for the areas in the help; `main` runs an area itself, without its placeholder.
    @root.command(name, help=text, add_help_option=False)
    def area() -> None:
        _run_area([name])


for _name, _text in AREAS.items():
    _register(_name, _text)


def _run_area(arguments: Sequence[str]) -> None:
    name, *rest = arguments
    module = importlib.import_module(f"tensorguard.cli.{name}")
    typer.main.get_command(module.app).main(rest, prog_name=f"tensorguard {name}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit; `tensorguard` calls this."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    from tensorguard.errors import TensorGuardError

    try:
        if given and given[0] in AREAS:
            _run_area(given)
        else:
            root(given, prog_name="tensorguard")
    except TensorGuardError as error:
        _fail(error)


def _fail(error: TensorGuardError) -> NoReturn:
    from tensorguard.errors import EX_CONFIG, ConfigurationError
    from tensorguard.gates import GateFailure

    if isinstance(error, GateFailure):
        error.report(sys.stderr)
    else:
        sys.stderr.write(f"error: {error}\nhint: {error.remedy}\n")
    sys.exit(EX_CONFIG if isinstance(error, ConfigurationError) else EX_FAILED)
