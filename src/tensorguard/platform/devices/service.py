"""A device exists because an operator's one-time token met a key that was proven; then, until revoked."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from tensorguard.errors import Conflict, Unauthenticated
from tensorguard.identity import csr
from tensorguard.keys.provider import KeyProvider
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.tables.devices import Certificate, Device, Enrolment, Fleet, FleetRoot
from tensorguard.platform.devices.repository import (
    DeviceRepository,
    EnrolmentDirectory,
    EnrolmentRepository,
    FleetRepository,
)
from tensorguard.platform.identity import service as identity
from tensorguard.platform.identity.repository import CertificateRepository
from tensorguard.platform.principal import Principal
from tensorguard.platform.secrets import Secrets, random_token
from tensorguard.wire.devices import Redemption

TOKEN_PREFIX = "tge"  # noqa: S105 - a prefix, not a token


class FleetExists(Conflict):
    code = "fleet_exists"
    remedy = "Choose another name, or use the fleet that has it."


class EnrolmentRefused(Unauthenticated):
    """Unknown, expired and used tokens read the same."""

    code = "enrolment_refused"
    remedy = "Ask the fleet operator for a new enrolment token; each works once."


class DeviceKeyTaken(Conflict):
    code = "device_key_taken"
    remedy = "Make a new key on the device. A key enrols one device, and never again."


@dataclass(frozen=True, slots=True)
class Enrolled:
    """A device that was just enrolled."""

    device: Device
    certificate: Certificate
    root: FleetRoot


def create_fleet(session: Session, principal: Principal, name: str, *, now: datetime) -> Fleet:
    """Make a fleet. Raises `FleetExists`."""
    fleets = FleetRepository(session, tenant_id=principal.tenant_id)
    fleet_id = new_id()
    if not fleets.add_if_absent(fleet_id=fleet_id, name=name, now=now):
        raise FleetExists(f"a fleet is named {name}")
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action="fleet.created",
        subject=f"fleet:{fleet_id}",
        now=now,
        details={"name": name},
    )
    return fleets.get(fleet_id)


def create_enrolment(
    session: Session,
    principal: Principal,
    fleet_id: str,
    *,
    life: timedelta,
    secrets: Secrets,
    keys: KeyProvider,
    now: datetime,
) -> tuple[Enrolment, str]:
    """Make a one-time token for a fleet; return its row and, this once, the token."""
    tenant_id = principal.tenant_id
    fleet = FleetRepository(session, tenant_id=tenant_id).get(fleet_id)
    identity.ensure_root(session, tenant_id, keys=keys, actor=principal.actor, now=now)
    token = random_token(TOKEN_PREFIX)
    row = Enrolment(
        id=new_id(),
        tenant_id=tenant_id,
        fleet_id=fleet.id,
        token_hash=secrets.pepper(token),
        created_by=principal.actor,
        created=now,
        expires=now + life,
        redeemed=None,
        device_id=None,
    )
    EnrolmentRepository(session, tenant_id=tenant_id).add(row)
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=principal.actor,
        action="enrolment.created",
        subject=f"enrolment:{row.id}",
        now=now,
        details={"fleet_id": fleet.id, "expires": row.expires.isoformat()},
    )
    return row, token


def redeem(
    session: Session,
    redemption: Redemption,
    *,
    secrets: Secrets,
    keys: KeyProvider,
    now: datetime,
) -> Enrolled:
    """Turn a token and a request into a device with a certificate; all of it, or nothing.

    Raises `EnrolmentRefused`, `DeviceKeyTaken`, or the errors of `csr.parse`; none burns the token.
    """
    # (1) the token is one of ours, unused and in time
    found = EnrolmentDirectory(session).find(secrets.pepper(redemption.token))
    if found is None or found.redeemed is not None or now >= found.expires:
        raise EnrolmentRefused("the enrolment token is not valid")
    # (2) the requester holds the key
    proven = csr.parse(redemption.csr_pem)
    # (3) the token is used up: of many at once, one goes on
    enrolments = EnrolmentRepository(session, tenant_id=found.tenant_id)
    if not enrolments.claim(found.id, now=now):
        raise EnrolmentRefused("the enrolment token is not valid")
    # (4) no other device of the tenant has, or had, this key
    devices = DeviceRepository(session, tenant_id=found.tenant_id)
    device_id = new_id()
    added = devices.add_if_absent(
        device_id=device_id,
        fleet_id=found.fleet_id,
        name=redemption.name,
        public_key=proven.spki,
        key_sha256=proven.sha256,
        now=now,
    )
    if not added:
        raise DeviceKeyTaken("a device was enrolled with this key")
    enrolments.name_device(found.id, device_id)
    # (5) the certificate, and the trail
    actor = f"enrolment:{found.id}"
    AuditRepository(session, tenant_id=found.tenant_id).append(
        actor=actor,
        action="device.enrolled",
        subject=f"device:{device_id}",
        now=now,
        details={
            "fleet_id": found.fleet_id,
            "name": redemption.name,
            "key_sha256": proven.sha256,
        },
    )
    certificate, root = identity.issue(
        session, found.tenant_id, device_id, proven, keys=keys, actor=actor, now=now
    )
    return Enrolled(devices.get(device_id), certificate, root)


def revoke(
    session: Session, principal: Principal, device_id: str, *, reason: str, now: datetime
) -> Device:
    """Revoke a device, its certificates and its API tokens. Twice changes nothing more."""
    tenant_id = principal.tenant_id
    devices = DeviceRepository(session, tenant_id=tenant_id)
    device = devices.get(device_id, lock=True)
    if device.revoked is not None:
        return device
    device.revoked, device.revocation_reason = now, reason
    CertificateRepository(session, tenant_id=tenant_id).revoke_all(device_id, now=now)
    tokens = devices.revoke_tokens(device_id, now=now)
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=principal.actor,
        action="device.revoked",
        subject=f"device:{device_id}",
        now=now,
        details={"reason": reason, "api_tokens_revoked": tokens},
    )
    return device
