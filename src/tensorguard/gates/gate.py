"""What a gate is, what it is asked with, and how a refusal reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TextIO

from tensorguard.errors import ConfigurationError
from tensorguard.settings import Settings


class Role(StrEnum):
    """What the process that starts is going to be."""

    platform = "platform"
    serving = "serving"
    aggregator = "aggregator"
    agent = "agent"
    operator = "operator"  # administration commands: they touch keys and database
    client = "client"  # offline tools: they touch neither


SERVERS = frozenset({Role.platform, Role.serving, Role.aggregator})
WITH_KEYS = frozenset({Role.platform, Role.operator})
EVERYONE = frozenset(Role)

Probe = Callable[[Settings], str | None]


@dataclass(frozen=True, slots=True)
class Probes:
    """Questions that only the composition root can ask. A probe answers what is wrong, or None."""

    key_provider: Probe | None = None
    database_revision: Probe | None = None
    trust_store: Probe | None = None
    ray: Probe | None = None
    components: tuple[str, ...] = ()
    now: Callable[[], datetime] = field(default=lambda: datetime.now(UTC))


@dataclass(frozen=True, slots=True)
class Gate:
    """One reason to refuse to start."""

    id: str
    roles: frozenset[Role]
    refuses: str
    remedy: str
    violated: Callable[[Settings, Probes], str | None]
    always: bool = False


@dataclass(frozen=True, slots=True)
class Finding:
    """What one gate said. `detail` is None when it passed."""

    gate: Gate
    detail: str | None
    applies: bool

    def as_dict(self) -> dict[str, object]:
        """Return the row that `tensorguard doctor --json` prints."""
        return {
            "detail": self.detail,
            "id": self.gate.id,
            "refuses": self.gate.refuses,
            "remedy": self.gate.remedy,
            "result": "pass" if self.detail is None else "fail" if self.applies else "relaxed",
        }

    def __str__(self) -> str:
        """Render the line that operators grep for."""
        return (
            f"[PRODUCTION GATE FAILED: {self.gate.id}] {self.detail} "
            f"REMEDIATION: {self.gate.remedy}"
        )


class GateFailure(ConfigurationError):
    """One or more gates refused. `findings` names each."""

    code = "production_gate"
    remedy = "Run `tensorguard doctor` and follow each remediation."

    def __init__(self, findings: tuple[Finding, ...]) -> None:
        super().__init__("\n".join(str(finding) for finding in findings))
        self.findings = findings

    def report(self, stream: TextIO) -> None:
        """Write one line of JSON for machines, then the same for people."""
        rows = [finding.as_dict() for finding in self.findings]
        stream.write(json.dumps({"error": self.code, "gates": rows}) + "\n")
        stream.write(f"{self}\n")
        stream.flush()
