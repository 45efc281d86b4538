"""What administration commands start with: the settings, once every gate for an operator has passed."""

from __future__ import annotations

import dataclasses

from pydantic import SecretBytes

from tensorguard.gates import Probes, Role, enforce
from tensorguard.keys import development, self_test
from tensorguard.settings import Settings


def operator_settings(*, key_master_new: SecretBytes | None = None) -> Settings:
    """Return the settings. Raises `GateFailure`, which `main` turns into exit code 78.

    `key_master_new` is a second master key under which the file provider may find its folder.
    """
    settings = development.complete(Settings.from_environment())
    if key_master_new is not None:
        settings = dataclasses.replace(settings, key_master_new=key_master_new)
    return enforce(settings, Role.operator, Probes(key_provider=self_test.probe))
