"""All SQL about the sealed secrets of one tenant."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound
from tensorguard.platform.db.tables.keys import TenantSecret


class SecretRepository:
    """The secrets of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._mine = select(TenantSecret).where(TenantSecret.tenant_id == tenant_id)

    def find(self, name: str, *, lock: bool = False) -> TenantSecret | None:
        """Return one secret, locked against other writers if asked."""
        query = self._mine.where(TenantSecret.name == name)
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        return self._session.scalar(query)

    def get(self, name: str, *, lock: bool = False) -> TenantSecret:
        """Return one secret. Raises `NotFound`."""
        row = self.find(name, lock=lock)
        if row is None:
            raise NotFound(f"there is no secret {name[:64]}")
        return row

    def page(self, *, after: str | None, limit: int) -> list[TenantSecret]:
        """Return up to `limit` secrets whose name comes after `after`, by name."""
        query = self._mine.order_by(TenantSecret.name).limit(limit)
        if after is not None:
            query = query.where(TenantSecret.name > after)
        return list(self._session.scalars(query))

    def add(self, row: TenantSecret) -> None:
        """Store a new secret."""
        self._session.add(row)
        self._session.flush()

    def remove(self, row: TenantSecret) -> None:
        """Forget a secret."""
        self._session.delete(row)
        self._session.flush()

    def older_than(self, version: int, *, limit: int) -> list[TenantSecret]:
        """Return up to `limit` secrets whose data key an older version wrapped, locked."""
        query = self._mine.where(TenantSecret.key_version < version).order_by(TenantSecret.name)
        return list(self._session.scalars(query.limit(limit).with_for_update(skip_locked=True)))


class SecretDirectory:
    """Which versions are still needed, over all tenants, and whose. It changes nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def versions(self) -> frozenset[int]:
        """Return every version of the data-at-rest ring under which a secret is sealed."""
        return frozenset(self._session.scalars(select(TenantSecret.key_version).distinct()))

    def tenants_behind(self, version: int) -> list[str]:
        """Return the tenants with a secret that an older version wrapped."""
        query = select(TenantSecret.tenant_id).where(TenantSecret.key_version < version)
        return list(self._session.scalars(query.distinct()))
