"""Every error carries a code, a status and a remedy."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tensorguard
from tensorguard import errors

NATIVE = "tensorguard.moai.backends.native"  # needs the compiled runtime; defines no error


def every(error: type[errors.TensorGuardError]) -> list[type[errors.TensorGuardError]]:
    return [error, *(found for child in error.__subclasses__() for found in every(child))]


@pytest.mark.parametrize("missing", ["code", "remedy"])
def test_error_without_code_or_remedy_cannot_be_defined(missing: str) -> None:
    members = {"code": "x", "remedy": "y"}
    del members[missing]
    with pytest.raises(TypeError, match=missing):
        type("Bad", (errors.TensorGuardError,), members)


def test_codes_are_unique() -> None:
    for module in pkgutil.walk_packages(tensorguard.__path__, "tensorguard."):
        if module.name not in {"tensorguard.platform.db.migrations.env", NATIVE}:
            importlib.import_module(module.name)
    ours = {e for e in every(errors.TensorGuardError) if e.__module__.startswith("tensorguard.")}
    codes = sorted(error.code for error in ours)
    assert len(codes) > 15
    assert codes == sorted(set(codes))
