"""Runs `tensorguard` commands in this process, through the function that the console script calls."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from typing import Any

import pytest

from tensorguard.cli import main


@dataclass
class Ended:
    """How a command ended."""

    status: int
    output: str
    error: str

    def json(self) -> Any:
        """Return what it printed."""
        return json.loads(self.output)


def run(capsys: pytest.CaptureFixture[str], command: str) -> Ended:
    """Run one command line."""
    capsys.readouterr()
    status = 0
    try:
        main(shlex.split(command))
    except SystemExit as stop:
        status = int(stop.code or 0)
    printed = capsys.readouterr()
    return Ended(status, printed.out, printed.err)
