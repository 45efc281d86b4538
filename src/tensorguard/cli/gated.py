"""What administration commands start with: the settings, once every gate for an operator has passed."""

from __future__ import annotations

from tensorguard.gates import Probes, Role, enforce
from tensorguard.keys import development, self_test
from tensorguard.settings import Settings


def operator_settings() -> Settings:
    """Return the settings. Raises `GateFailure`, which `main` turns into exit code 78."""
    settings = development.complete(Settings.from_environment())
    return enforce(settings, Role.operator, Probes(key_provider=self_test.probe))
