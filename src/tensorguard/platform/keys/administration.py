"""What an operator does with keys on the machine: recorded in a trail first, then done, then committed.

A key that belongs to a ring is recorded in the trail of that ring's tenant, every other one in the
trail of the tenant `platform`. In production a trail that cannot be written stops the command. Only a
machine without any platform database keeps no trail: a development folder that was never migrated,
or the computer of someone who signs packs and runs no platform.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from pydantic import SecretBytes
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.keys.file import FileKeyProvider
from tensorguard.keys.provider import KeyId, KeyInfo, KeyProvider, Purpose, WrongKeyUse
from tensorguard.platform import administration
from tensorguard.platform.audit.chain import Detail
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db import revision
from tensorguard.platform.db.tables.keys import Keyring
from tensorguard.platform.keys.envelope import Envelope
from tensorguard.platform.keys.periodic import rewrap_secrets
from tensorguard.platform.keys.repository import KeyringDirectory, KeyringRepository
from tensorguard.platform.keys.rings import DATA_AT_REST, OWN_RINGS, PLATFORM_TENANT
from tensorguard.platform.keys.service import RingManaged, VersionNeeded
from tensorguard.platform.tenant_secrets.repository import SecretDirectory
from tensorguard.platform.users.tenants import create_tenant, find_tenant
from tensorguard.settings import Settings

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """An operation that the trail knows of; without a database it knows no ring."""

    session: Session | None
    key: KeyId | None
    ring: Keyring | None
    now: datetime

    def check_usable(self) -> None:
        """Raise `RingManaged` for a key that the platform alone uses."""
        if self.key in OWN_RINGS or (self.ring is not None and self.ring.managed):
            raise RingManaged(f"{self.key} is a key of the platform itself")

    def check_unneeded(self, version: int) -> None:
        """Raise `VersionNeeded` while something is sealed under this version."""
        if self.session is None or self.key != DATA_AT_REST:
            return
        if version in SecretDirectory(self.session).versions():
            raise VersionNeeded(f"stored secrets are sealed under version {version}")

    def note(self, info: KeyInfo) -> None:
        """Let the ring know which version is in use now."""
        if self.session is not None and self.ring is not None:
            KeyringRepository(self.session, tenant_id=self.ring.tenant_id).note_active(
                self.ring.name, info.version, now=self.now
            )


def _has_trail(settings: Settings) -> bool:
    if settings.production:
        return settings.database_url is not None
    with administration.engine_of(settings) as engine:
        return revision.current(engine) is not None


@contextmanager
def recorded(
    settings: Settings, action: str, key: KeyId | None, **details: Detail
) -> Iterator[Recorded]:
    """Append the event, let the block do it, and commit. `key` is None for an act on all keys."""
    now = administration.now()
    if not _has_trail(settings):
        log.warning("there is no platform database here, so this is in no audit trail")
        yield Recorded(None, key, None, now)
        return
    with administration.writing(settings) as session:
        ring = None if key is None else KeyringDirectory(session).of_key(key)
        tenant_id = _platform(session, now) if ring is None else ring.tenant_id
        AuditRepository(session, tenant_id=tenant_id).append(
            actor=administration.operator(),
            action=action,
            subject=f"key:{key or '*'}",
            now=now,
            details=details,
        )
        yield Recorded(session, key, ring, now)


def _platform(session: Session, now: datetime) -> str:
    found = find_tenant(session, PLATFORM_TENANT)
    made = found or create_tenant(
        session, PLATFORM_TENANT, actor=administration.operator(), now=now
    )
    return made.id


def record(settings: Settings, action: str, key: KeyId, **details: Detail) -> None:
    """Append an event and commit it, before something that takes long is done."""
    with recorded(settings, action, key, **details):
        pass


def rotate(settings: Settings, keys: KeyProvider, key: KeyId) -> KeyInfo:
    """Activate the pending version of a key, or a fresh one."""
    with recorded(settings, "key.rotated", key) as event:
        info = keys.rotate(key)
        event.note(info)
    return info


def retire(settings: Settings, keys: KeyProvider, key: KeyId, version: int) -> KeyInfo:
    """End a version. Raises `VersionNeeded`, `BadTransition`."""
    with recorded(settings, "key.retired", key, version=version) as event:
        event.check_unneeded(version)
        return keys.retire(key, version)


def check_destroyable(info: KeyInfo) -> None:
    """Raise `VersionNeeded` for a version whose signatures are evidence."""
    if info.purpose is Purpose.audit_head:
        raise VersionNeeded("audit heads that this version signed would no longer verify")


def rewrap_master(
    settings: Settings, keys: KeyProvider, new: SecretBytes, *, progress: Callable[[KeyId], None]
) -> int:
    """Seal every key of the file provider under a new master; return how many were sealed."""
    if not isinstance(keys, FileKeyProvider):
        raise WrongKeyUse("only the file provider has a master key")
    with recorded(settings, "key.master_rewrapped", None):
        return keys.master_rewrap(new, progress=progress)


def rewrap_stored(settings: Settings, keys: KeyProvider) -> int:
    """Wrap the data keys of all stored secrets under the active version; return how many were."""
    with administration.engine_of(settings) as engine:
        return rewrap_secrets(
            sessionmaker(engine, expire_on_commit=False),
            keys=keys,
            envelope=Envelope(keys),
            actor=administration.operator(),
            now=administration.now(),
        )
