"""All SQL about the roots and certificates of one tenant."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound
from tensorguard.platform.db.tables.devices import Certificate, FleetRoot
from tensorguard.platform.db.tables.keys import ReplacedRoot
from tensorguard.platform.db.upsert import insert_if_absent


class RootRepository:
    """The fleet root of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def find(self) -> FleetRoot | None:
        """Return the root, if it was made."""
        return self._session.get(FleetRoot, self._tenant_id)

    def get(self, *, lock: bool = False) -> FleetRoot:
        """Return the root, locked against other writers if asked. Raises `NotFound`."""
        root = self._session.get(
            FleetRoot, self._tenant_id, with_for_update=lock or None, populate_existing=lock
        )
        if root is None:
            raise NotFound("this tenant has no fleet CA yet; the first enrolment makes it")
        return root

    def add_if_absent(
        self, *, key_id: str, pem: str, created: datetime, not_after: datetime
    ) -> bool:
        """Store the root unless there is one; say whether it was stored."""
        values = {
            "tenant_id": self._tenant_id,
            "key_id": key_id,
            "pem": pem,
            "created": created,
            "not_after": not_after,
        }
        return insert_if_absent(self._session, FleetRoot, values)

    def replace(
        self, root: FleetRoot, *, sha256: str, pem: str, not_after: datetime, now: datetime
    ) -> None:
        """Put a new root in the place of `root`, whose digest is `sha256`, and keep that one."""
        old = ReplacedRoot(
            tenant_id=self._tenant_id,
            sha256=sha256,
            key_id=root.key_id,
            pem=root.pem,
            created=root.created,
            not_after=root.not_after,
            replaced=now,
        )
        self._session.add(old)
        root.pem, root.created, root.not_after = pem, now, not_after
        self._session.flush()

    def replaced(self, *, now: datetime, limit: int) -> list[ReplacedRoot]:
        """Return up to `limit` replaced roots that have not expired, newest first."""
        query = (
            select(ReplacedRoot)
            .where(ReplacedRoot.tenant_id == self._tenant_id, ReplacedRoot.not_after > now)
            .order_by(ReplacedRoot.replaced.desc())
            .limit(limit)
        )
        return list(self._session.scalars(query))


class CertificateRepository:
    """The certificates of one tenant's devices."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(Certificate).where(Certificate.tenant_id == tenant_id)

    def get(self, serial: str) -> Certificate:
        """Return one certificate. Raises `NotFound`."""
        row = self._session.scalar(self._mine.where(Certificate.serial == serial))
        if row is None:
            raise NotFound(f"there is no certificate {serial[:64]}")
        return row

    def page(self, *, after: str | None, limit: int) -> list[Certificate]:
        """Return up to `limit` certificates whose serial comes after `after`."""
        query = self._mine.order_by(Certificate.serial).limit(limit)
        if after is not None:
            query = query.where(Certificate.serial > after)
        return list(self._session.scalars(query))

    def valid(self, device_id: str, *, now: datetime) -> Certificate | None:
        """Return the certificate of a device that holds longest at `now`, if one holds."""
        query = (
            self._mine.where(
                Certificate.device_id == device_id,
                Certificate.revoked.is_(None),
                Certificate.not_before <= now,
                Certificate.not_after > now,
            )
            .order_by(Certificate.not_after.desc())
            .limit(1)
        )
        return self._session.scalar(query)

    def add(self, row: Certificate) -> None:
        """Store a certificate."""
        self._session.add(row)
        self._session.flush()

    def revoke_all(self, device_id: str, *, now: datetime) -> None:
        """Revoke every certificate of a device."""
        self._session.execute(
            update(Certificate)
            .where(
                Certificate.tenant_id == self._tenant_id,
                Certificate.device_id == device_id,
                Certificate.revoked.is_(None),
            )
            .values(revoked=now)
        )
