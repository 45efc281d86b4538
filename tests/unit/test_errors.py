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


NOT_OURS_TO_IMPORT = {
    "tensorguard.bench.peer_orion",  # run by the peer's own interpreter
    "tensorguard.bench.peer_concrete_ml",
}


def test_one_code_has_one_status_and_belongs_to_one_package() -> None:
    modules = {one.name for one in pkgutil.walk_packages(tensorguard.__path__, "tensorguard.")}
    assert modules > NOT_OURS_TO_IMPORT
    for name in sorted(modules - NOT_OURS_TO_IMPORT):
        importlib.import_module(name)
    found: dict[str, set[tuple[int, str]]] = {}
    for error in every(errors.TensorGuardError):
        package = error.__module__.split(".")[1:2]
        if error.__module__.startswith("tensorguard."):
            found.setdefault(error.code, set()).add((error.status, *package))
    assert len(found) > 50
    assert {code: uses for code, uses in found.items() if len(uses) > 1} == {}
