"""A ring's life and its uses: recorded first, then done. Without the record nothing is done.

The record and the request commit together. What a custody did in a request whose commit then failed
cannot be undone; the policy task finds it, like every change made outside of the platform, and records
it as `key.changed_outside`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from tensorguard.errors import Conflict, Forbidden
from tensorguard.identity.ca import ca_key_id
from tensorguard.keys.provider import (
    Algorithm,
    DataKey,
    KeyId,
    KeyInfo,
    KeyProvider,
    KeyState,
    PublicKey,
    Purpose,
    Signature,
    WrapContext,
    WrongKeyUse,
    key_id,
)
from tensorguard.keys.signers import ensure
from tensorguard.platform.audit.chain import Detail
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.keys import Keyring
from tensorguard.platform.identity.repository import RootRepository
from tensorguard.platform.keys.envelope import Envelope
from tensorguard.platform.keys.policy import Policy, due
from tensorguard.platform.keys.repository import KeyringDirectory, KeyringRepository, policy_of
from tensorguard.platform.keys.rings import (
    DATA_AT_REST,
    FLEET_CA,
    OWN_RINGS,
    PLATFORM_TENANT,
    POLICY_ACTOR,
    USUAL,
    OwnRing,
    ring_name,
    tenant_key_id,
)
from tensorguard.platform.tenant_secrets.repository import SecretDirectory

MAX_RINGS: Final = 64  # of one tenant
PUBLISHED: Final = frozenset({KeyState.pending, KeyState.active, KeyState.decrypt_only})
DATA_KEY_PURPOSE: Final = "tenant-data"


class RingExists(Conflict):
    code = "keyring_exists"
    remedy = "Choose another name, or rotate the key that exists."


class TooManyRings(Conflict):
    code = "too_many_keys"
    remedy = "Use a key that exists; a tenant's keys are counted, not their versions."


class RingManaged(Forbidden):
    code = "key_managed"
    remedy = "The platform alone uses this key. Make one of your own with POST /api/v1/keys."


class VersionNeeded(Conflict):
    code = "key_version_needed"
    remedy = "Rewrap what this version protects first; versions of the audit head stay for ever."


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring and all that may be known of its versions, oldest first."""

    row: Keyring
    policy: Policy
    versions: tuple[KeyInfo, ...]

    @property
    def key(self) -> KeyId:
        """Its key in the custody."""
        return key_id(self.row.key_id)

    @property
    def current(self) -> KeyInfo:
        """The active version, or the newest when none is active."""
        actives = [info for info in self.versions if info.state is KeyState.active]
        return actives[0] if actives else self.versions[-1]

    @property
    def signs(self) -> bool:
        """Whether it has public keys."""
        return Algorithm(self.row.algorithm).signs


class Keyrings:
    """The rings of one tenant, on behalf of one actor."""

    def __init__(
        self,
        session: Session,
        *,
        tenant_id: str,
        actor: str,
        keys: KeyProvider,
        envelope: Envelope,
        now: datetime,
    ) -> None:
        self._session, self._tenant_id, self._actor = session, tenant_id, actor
        self._keys, self._envelope, self._now = keys, envelope, now
        self._rings = KeyringRepository(session, tenant_id=tenant_id)
        self._trail = AuditRepository(session, tenant_id=tenant_id)

    # --- reading --------------------------------------------------------------------------

    def page(self, *, after: str | None, limit: int) -> list[Ring]:
        """Return up to `limit` rings after the name `after`, by name."""
        self.adopt()
        return [self._shown(row) for row in self._rings.page(after=after, limit=limit)]

    def get(self, name: str) -> Ring:
        """Return one ring. Raises `NotFound`."""
        self.adopt()
        return self._shown(self._rings.get(name))

    def public_keys(self, name: str) -> list[tuple[KeyInfo, PublicKey]]:
        """Return the public keys of every version that is not destroyed, newest first.

        Retired ones are among them: what they signed in their time verifies. Raises `WrongKeyUse`.
        """
        ring = self.get(name)
        if not ring.signs:
            raise WrongKeyUse(f"{name} wraps data keys and has no public key")
        return [
            (info, self._keys.public_key(ring.key, info.version))
            for info in reversed(ring.versions)
            if info.state is not KeyState.destroyed
        ]

    def adopt(self) -> None:
        """Make the rings that the platform uses in this tenant known, with their first policy."""
        if KeyringDirectory(self._session).tenant_name(self._tenant_id) == PLATFORM_TENANT:
            for name, own in OWN_RINGS.items():
                self._adopt(name, key_id(name), own)
        if RootRepository(self._session, tenant_id=self._tenant_id).find() is not None:
            own = OwnRing(Purpose.fleet_ca, Algorithm.es256, Policy())
            self._adopt(FLEET_CA, ca_key_id(self._tenant_id), own)

    def _adopt(self, name: str, key: KeyId, own: OwnRing) -> None:
        added = self._rings.add_if_absent(
            name,
            key_id=key,
            purpose=own.purpose,
            algorithm=own.algorithm,
            managed=True,
            policy=own.policy,
            now=self._now,
            actor=self._actor,
        )
        if added:
            self._record("key.adopted", key, name)
            ensure(self._keys, key, own.algorithm, own.purpose)
            self._settle(self._rings.get(name))

    # --- changing -------------------------------------------------------------------------

    def create(
        self, name: str, *, purpose: Purpose, algorithm: Algorithm | None, policy: Policy
    ) -> Ring:
        """Make a ring with an active version 1. Raises `RingExists`, `WrongKeyUse`."""
        if purpose not in USUAL:
            raise WrongKeyUse(f"keys for {purpose} are made by the platform alone")
        chosen = algorithm or USUAL[purpose]
        if chosen.signs is not USUAL[purpose].signs:
            raise WrongKeyUse(f"a key for {purpose} cannot be {chosen}")
        if len(self._rings.page(after=None, limit=MAX_RINGS)) >= MAX_RINGS:
            raise TooManyRings(f"a tenant has at most {MAX_RINGS} keys")
        key = tenant_key_id(self._tenant_id, ring_name(name))
        added = self._rings.add_if_absent(
            name,
            key_id=key,
            purpose=purpose,
            algorithm=chosen,
            managed=False,
            policy=policy,
            now=self._now,
            actor=self._actor,
        )
        if not added:
            raise RingExists(f"there is a key {name}")
        self._record("key.created", key, name, algorithm=chosen, purpose=purpose)
        ensure(self._keys, key, chosen, purpose)  # there, if the commit of a first try failed
        return self._settle(self._rings.get(name))

    def set_policy(self, name: str, policy: Policy) -> Ring:
        """Change when the ring rotates."""
        row = self._begin(name, "key.policy_changed", **_policy_details(policy))
        self._rings.set_policy(row, policy)
        return self._shown(row)

    def stage(self, name: str) -> Ring:
        """Publish the version that the next rotation activates."""
        row = self._begin(name, "key.staged")
        self._keys.stage(key_id(row.key_id))
        return self._settle(row)

    def rotate(self, name: str) -> Ring:
        """Activate the published version or a fresh one; the active one verifies and opens on."""
        row = self._begin(name, "key.rotated")
        self._keys.rotate(key_id(row.key_id))
        return self._settle(row)

    def retire(self, name: str, version: int) -> Ring:
        """End a version. Raises `VersionNeeded`, `BadTransition`."""
        row = self._begin(name, "key.retired", version=version)
        if version in self._needed(row):
            raise VersionNeeded(f"stored secrets are sealed under version {version} of {name}")
        self._keys.retire(key_id(row.key_id), version)
        self._envelope.forget()
        return self._settle(row)

    def disable(self, name: str) -> Ring:
        """Refuse every use until `enable`."""
        row = self._begin(name, "key.disabled")
        self._keys.disable(key_id(row.key_id))
        self._envelope.forget()
        return self._settle(row)

    def enable(self, name: str) -> Ring:
        """Undo `disable`."""
        row = self._begin(name, "key.enabled")
        self._keys.enable(key_id(row.key_id))
        return self._settle(row)

    def destroy(self, name: str, version: int, *, delay: timedelta) -> Ring:
        """Have a retired version destroyed after `delay`. Raises `VersionNeeded`, `BadTransition`."""
        row = self._begin(
            name,
            "key.destruction_scheduled",
            version=version,
            delay_seconds=int(delay.total_seconds()),
        )
        if row.purpose == Purpose.audit_head:
            raise VersionNeeded("audit heads that this version signed would no longer verify")
        self._keys.destroy(key_id(row.key_id), version, delay=delay)
        return self._settle(row)

    def cancel_destruction(self, name: str, version: int) -> Ring:
        """Keep a version whose time has not come."""
        row = self._begin(name, "key.destruction_cancelled", version=version)
        self._keys.cancel_destruction(key_id(row.key_id), version)
        return self._settle(row)

    # --- using ----------------------------------------------------------------------------

    def sign(self, name: str, message: bytes) -> Signature:
        """Sign with the active version. Raises `RingManaged`, `WrongKeyUse`."""
        row = self._used(name, "key.signed")
        return self._keys.sign(key_id(row.key_id), message)

    def verify(self, name: str, message: bytes, *, version: int, signature: bytes) -> int:
        """Return the version that made `signature`. Raises `SignatureInvalid`, `NotFound`."""
        row = self._rings.get(name)
        self._keys.public_key(key_id(row.key_id), version).verify(message, signature)
        return version

    def data_key(self, name: str) -> DataKey:
        """Make a data key and wrap it for this tenant."""
        row = self._used(name, "key.data_key_made")
        return self._keys.data_key(key_id(row.key_id), self._context())

    def unwrap(self, name: str, wrapped: bytes) -> bytes:
        """Open a data key that was wrapped for this tenant."""
        row = self._used(name, "key.unwrapped")
        return self._keys.unwrap(key_id(row.key_id), wrapped, self._context())

    def _context(self) -> WrapContext:
        return WrapContext(purpose=DATA_KEY_PURPOSE, tenant=self._tenant_id)

    def _used(self, name: str, action: str) -> Keyring:
        row = self._rings.get(name)
        if row.managed:
            raise RingManaged(f"{name} is a key of the platform itself")
        self._record(action, row.key_id, name)
        return row

    # --- the policy -----------------------------------------------------------------------

    def apply_policy(self, name: str) -> Ring:
        """Do what is due now; record what was changed outside of the platform."""
        row = self._rings.get(name, lock=True)
        ring = self._shown(row)
        known = self._rings.history(name)
        if self._note(row, ring) and known:
            self._record("key.changed_outside", row.key_id, name, version=ring.current.version)
        todo = due(
            ring.policy,
            ring.versions,
            self._rings.history(name),
            needed=self._needed(row),
            now=self._now,
        )
        if todo.rotate:
            ring = self.rotate(name)
        elif todo.stage:
            ring = self.stage(name)
        for version in todo.retire:
            ring = self.retire(name, version)
        return ring

    def _needed(self, row: Keyring) -> frozenset[int]:
        if row.key_id != DATA_AT_REST:
            return frozenset()
        return SecretDirectory(self._session).versions()

    def _begin(self, name: str, action: str, **details: Detail) -> Keyring:
        row = self._rings.get(name, lock=True)
        self._record(action, row.key_id, name, **details)
        return row

    def _record(self, action: str, key: str, ring_name: str, /, **details: Detail) -> None:
        self._trail.append(
            actor=self._actor,
            action=action,
            subject=f"key:{key}",
            now=self._now,
            details={"name": ring_name, **details},
        )

    def _settle(self, row: Keyring) -> Ring:
        ring = self._shown(row)
        self._note(row, ring)
        return ring

    def _note(self, row: Keyring, ring: Ring) -> bool:
        if ring.current.state is not KeyState.active:
            return False
        return self._rings.note_active(row.name, ring.current.version, now=self._now)

    def _shown(self, row: Keyring) -> Ring:
        return Ring(row, policy_of(row), self._keys.versions(key_id(row.key_id)))


def _policy_details(policy: Policy) -> dict[str, Detail]:
    return {
        "overlap": None if policy.overlap is None else int(policy.overlap.total_seconds()),
        "period": None if policy.period is None else int(policy.period.total_seconds()),
    }


def record_destroyed(session: Session, gone: KeyInfo, *, platform_id: str, now: datetime) -> None:
    """Record in the trail of its tenant that a version was destroyed because its time came."""
    ring = KeyringDirectory(session).of_key(gone.key_id)
    AuditRepository(session, tenant_id=ring.tenant_id if ring else platform_id).append(
        actor=POLICY_ACTOR,
        action="key.destroyed",
        subject=f"key:{gone.key_id}",
        now=now,
        details={"version": gone.version},
    )
