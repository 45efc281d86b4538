"""All SQL about the assertions that one tenant's devices have used."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import delete
from sqlalchemy.orm import Session

from tensorguard.platform.db.tables.devices import UsedAssertion
from tensorguard.platform.db.upsert import insert_if_absent


class AssertionRepository:
    """The used assertions of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def use(self, device_id: str, jti_sha256: str, *, expires: datetime, now: datetime) -> bool:
        """Use an assertion up; say whether this was the first time. Forgets the expired ones."""
        values = {
            "device_id": device_id,
            "jti_sha256": jti_sha256,
            "tenant_id": self._tenant_id,
            "expires": expires,
        }
        first = insert_if_absent(self._session, UsedAssertion, values)
        self._session.execute(
            delete(UsedAssertion).where(
                UsedAssertion.tenant_id == self._tenant_id,
                UsedAssertion.device_id == device_id,
                UsedAssertion.expires < now,
            )
        )
        return first
