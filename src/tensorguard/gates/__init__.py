"""Production gates: each row is one named, tested reason not to start.

A gate looks at the settings or asks a probe, and answers with what is wrong or with None. All
violations are reported together. A row marked `always` holds in development and research too.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from tensorguard.errors import EX_CONFIG
from tensorguard.gates.entropy import weakness
from tensorguard.gates.gate import Finding, Gate, GateFailure, Probes, Role
from tensorguard.gates.table import GATES
from tensorguard.settings import Settings

__all__ = [
    "GATES",
    "Finding",
    "Gate",
    "GateFailure",
    "Probes",
    "Role",
    "enforce",
    "enforce_or_exit",
    "inspect",
    "weakness",
]


def inspect(settings: Settings, role: Role, probes: Probes) -> tuple[Finding, ...]:
    """Ask every gate of `role`. Relaxed rows are reported, but do not apply."""
    relaxed = not settings.production and "TG_ENVIRONMENT" not in settings.malformed
    return tuple(
        Finding(gate, gate.violated(settings, probes), applies=gate.always or not relaxed)
        for gate in GATES
        if role in gate.roles
    )


def enforce(settings: Settings, role: Role, probes: Probes | None = None) -> Settings:
    """Return the settings, or raise `GateFailure` naming every violated gate."""
    findings: Iterable[Finding] = inspect(settings, role, probes or Probes())
    failed = tuple(f for f in findings if f.applies and f.detail is not None)
    if failed:
        raise GateFailure(failed)
    return settings


def enforce_or_exit(settings: Settings, role: Role, probes: Probes | None = None) -> Settings:
    """Like `enforce`, for process entry points: report on stderr and exit with status 78."""
    try:
        return enforce(settings, role, probes)
    except GateFailure as failure:
        failure.report(sys.stderr)
        raise SystemExit(EX_CONFIG) from failure
