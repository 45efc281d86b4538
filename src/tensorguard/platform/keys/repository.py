"""All SQL about the keyrings of one tenant."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound
from tensorguard.platform.db.tables.keys import Keyring, KeyringVersion
from tensorguard.platform.db.tables.people import Tenant
from tensorguard.platform.db.upsert import insert_if_absent
from tensorguard.platform.keys.policy import Policy, Use


class KeyringRepository:
    """The rings of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(Keyring).where(Keyring.tenant_id == tenant_id)

    def get(self, name: str, *, lock: bool = False) -> Keyring:
        """Return one ring, locked against other changes if asked. Raises `NotFound`."""
        query = self._mine.where(Keyring.name == name)
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        ring = self._session.scalar(query)
        if ring is None:
            raise NotFound(f"there is no key {name[:64]}")
        return ring

    def page(self, *, after: str | None, limit: int) -> list[Keyring]:
        """Return up to `limit` rings whose name comes after `after`, by name."""
        query = self._mine.order_by(Keyring.name).limit(limit)
        if after is not None:
            query = query.where(Keyring.name > after)
        return list(self._session.scalars(query))

    def add_if_absent(
        self,
        name: str,
        *,
        key_id: str,
        purpose: str,
        algorithm: str,
        managed: bool,
        policy: Policy,
        now: datetime,
        actor: str,
    ) -> bool:
        """Store a ring unless there is one of this name; say whether it was stored."""
        values = {
            "tenant_id": self._tenant_id,
            "name": name,
            "key_id": key_id,
            "purpose": purpose,
            "algorithm": algorithm,
            "managed": managed,
            "period": _seconds(policy.period),
            "overlap": _seconds(policy.overlap),
            "created": now,
            "created_by": actor,
        }
        return insert_if_absent(self._session, Keyring, values)

    def set_policy(self, ring: Keyring, policy: Policy) -> None:
        """Change when a ring rotates."""
        ring.period, ring.overlap = _seconds(policy.period), _seconds(policy.overlap)
        self._session.flush()

    def history(self, name: str) -> dict[int, Use]:
        """Return when each known version was in use."""
        rows = self._session.scalars(
            select(KeyringVersion).where(
                KeyringVersion.tenant_id == self._tenant_id, KeyringVersion.name == name
            )
        )
        return {row.version: Use(row.activated, row.replaced) for row in rows}

    def note_active(self, name: str, version: int, *, now: datetime) -> bool:
        """Record which version is in use; say whether that is news."""
        rows = self._session.scalars(
            select(KeyringVersion).where(
                KeyringVersion.tenant_id == self._tenant_id, KeyringVersion.name == name
            )
        ).all()
        if any(row.version >= version for row in rows):  # known, or an answer from before
            return False
        rows = [row for row in rows if row.replaced is None]
        for row in rows:
            row.replaced = now
        values = {
            "tenant_id": self._tenant_id,
            "name": name,
            "version": version,
            "activated": now,
            "replaced": None,
        }
        return insert_if_absent(self._session, KeyringVersion, values)


class KeyringDirectory:
    """Finds rings of all tenants, for the policy task and the operator. It changes nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def every(self) -> list[tuple[str, str]]:
        """Return tenant and name of every ring."""
        query = select(Keyring.tenant_id, Keyring.name).order_by(Keyring.tenant_id, Keyring.name)
        return [(tenant, name) for tenant, name in self._session.execute(query)]

    def of_key(self, key_id: str) -> Keyring | None:
        """Return the ring whose material is this key of the custody."""
        return self._session.scalar(select(Keyring).where(Keyring.key_id == key_id))

    def tenant_name(self, tenant_id: str) -> str | None:
        """Return the name of a tenant."""
        return self._session.scalar(select(Tenant.name).where(Tenant.id == tenant_id))


def policy_of(ring: Keyring) -> Policy:
    """Return the policy in a row."""
    return Policy(_span(ring.period), _span(ring.overlap))


def _seconds(span: timedelta | None) -> int | None:
    return None if span is None else int(span.total_seconds())


def _span(seconds: int | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)
