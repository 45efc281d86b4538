"""Who is calling, for which tenant, and what they may do. Roles are only names for scopes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Final


class Scope(StrEnum):
    """One thing that a caller may be allowed to do."""

    fleets_read = "fleets:read"
    fleets_write = "fleets:write"
    devices_read = "devices:read"
    devices_write = "devices:write"
    enrolments_write = "enrolments:write"
    telemetry_read = "telemetry:read"
    telemetry_write = "telemetry:write"
    packs_read = "packs:read"
    packs_write = "packs:write"
    keys_read = "keys:read"
    keys_write = "keys:write"
    keys_use = "keys:use"
    users_read = "users:read"
    users_write = "users:write"
    tokens_write = "tokens:write"
    audit_read = "audit:read"
    serving_infer = "serving:infer"


class Role(StrEnum):
    """A person's place in a tenant."""

    viewer = "viewer"
    operator = "operator"
    engineer = "engineer"
    security = "security"
    admin = "admin"


_READ: Final = frozenset(
    {
        Scope.fleets_read,
        Scope.devices_read,
        Scope.telemetry_read,
        Scope.packs_read,
    }
)

ROLE_SCOPES: Final[Mapping[Role, frozenset[Scope]]] = MappingProxyType(
    {
        Role.viewer: _READ,
        Role.operator: _READ
        | {
            Scope.fleets_write,
            Scope.devices_write,
            Scope.enrolments_write,
            Scope.tokens_write,
        },
        Role.engineer: _READ | {Scope.packs_write, Scope.serving_infer, Scope.tokens_write},
        Role.security: _READ
        | {
            Scope.keys_read,
            Scope.keys_write,
            Scope.keys_use,
            Scope.audit_read,
            Scope.users_read,
            Scope.devices_write,
            Scope.tokens_write,
        },
        Role.admin: frozenset(Scope) - {Scope.keys_write, Scope.keys_use, Scope.telemetry_write},
    }
)

DEVICE_SCOPES: Final = frozenset({Scope.telemetry_write, Scope.serving_infer, Scope.packs_read})


class PrincipalKind(StrEnum):
    """How a caller proved who it is."""

    user = "user"
    api_token = "api-token"  # noqa: S105 - a kind, not a token
    device = "device"


@dataclass(frozen=True, slots=True)
class Principal:
    """An authenticated caller."""

    id: str
    kind: PrincipalKind
    tenant_id: str
    name: str
    scopes: frozenset[Scope]
    device_id: str | None = None  # set for devices and for tokens that are bound to one
    session_id: str | None = None

    @property
    def actor(self) -> str:
        """The name under which the audit trail knows this caller."""
        return f"{self.kind}:{self.id}"
