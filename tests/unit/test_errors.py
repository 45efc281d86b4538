"""Every error carries a code, a status and a remedy."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

import tensorguard
from tensorguard import errors


def every(error: type[errors.TensorGuardError]) -> list[type[errors.TensorGuardError]]:
    return [error, *(found for child in error.__subclasses__() for found in every(child))]


@pytest.mark.parametrize("missing", ["code", "remedy"])
def test_error_without_code_or_remedy_cannot_be_defined(missing: str) -> None:
    members = {"code": "x", "remedy": "y"}
    del members[missing]
    with pytest.raises(TypeError, match=missing):
        type("Bad", (errors.TensorGuardError,), members)


def test_one_code_has_one_status_and_belongs_to_one_package() -> None:
    for module in pkgutil.walk_packages(tensorguard.__path__, "tensorguard."):
        if module.name != "tensorguard.platform.db.migrations.env":
            importlib.import_module(module.name)
    found: dict[str, set[tuple[int, str]]] = {}
    for error in every(errors.TensorGuardError):
        package = error.__module__.split(".")[1:2]
        if error.__module__.startswith("tensorguard."):
            found.setdefault(error.code, set()).add((error.status, *package))
    assert len(found) > 50
    assert {code: uses for code, uses in found.items() if len(uses) > 1} == {}
