"""All SQL about the fleets, devices and enrolments of one tenant."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound
from tensorguard.platform.db.tables.devices import Device, Enrolment, Fleet
from tensorguard.platform.db.tables.people import ApiToken
from tensorguard.platform.db.upsert import insert_if_absent


class FleetRepository:
    """The fleets of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(Fleet).where(Fleet.tenant_id == tenant_id)

    def get(self, fleet_id: str) -> Fleet:
        """Return one fleet. Raises `NotFound`."""
        fleet = self._session.scalar(self._mine.where(Fleet.id == fleet_id))
        if fleet is None:
            raise NotFound(f"there is no fleet {fleet_id[:64]}")
        return fleet

    def page(self, *, after: str | None, limit: int) -> list[Fleet]:
        """Return up to `limit` fleets whose name comes after `after`, by name."""
        query = self._mine.order_by(Fleet.name).limit(limit)
        if after is not None:
            query = query.where(Fleet.name > after)
        return list(self._session.scalars(query))

    def add_if_absent(self, *, fleet_id: str, name: str, now: datetime) -> bool:
        """Store a fleet unless one has this name; say whether it was stored."""
        values = {"id": fleet_id, "tenant_id": self._tenant_id, "name": name, "created": now}
        return insert_if_absent(self._session, Fleet, values)


class DeviceRepository:
    """The devices of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(Device).where(Device.tenant_id == tenant_id)

    def get(self, device_id: str, *, lock: bool = False) -> Device:
        """Return one device, locked against other writers if asked. Raises `NotFound`."""
        query = self._mine.where(Device.id == device_id)
        if lock:
            query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
        device = self._session.scalar(query)
        if device is None:
            raise NotFound(f"there is no device {device_id[:64]}")
        return device

    def page(self, *, after: str | None, limit: int) -> list[Device]:
        """Return up to `limit` devices whose id comes after `after`, by id."""
        query = self._mine.order_by(Device.id).limit(limit)
        if after is not None:
            query = query.where(Device.id > after)
        return list(self._session.scalars(query))

    def add_if_absent(
        self,
        *,
        device_id: str,
        fleet_id: str,
        name: str,
        public_key: bytes,
        key_sha256: str,
        now: datetime,
    ) -> bool:
        """Store a device unless one of the tenant ever had this key; say whether it was stored."""
        values = {
            "id": device_id,
            "tenant_id": self._tenant_id,
            "fleet_id": fleet_id,
            "name": name,
            "public_key": public_key,
            "key_sha256": key_sha256,
            "created": now,
            "revoked": None,
            "revocation_reason": None,
        }
        return insert_if_absent(self._session, Device, values)

    def revoke_tokens(self, device_id: str, *, now: datetime) -> int:
        """Revoke the API tokens that are bound to a device; return how many there were."""
        query = update(ApiToken).where(
            ApiToken.tenant_id == self._tenant_id,
            ApiToken.device_id == device_id,
            ApiToken.revoked.is_(None),
        )
        return len(self._session.execute(query.values(revoked=now).returning(ApiToken.id)).all())


class EnrolmentRepository:
    """The enrolment tokens of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def add(self, enrolment: Enrolment) -> None:
        """Store a new enrolment."""
        self._session.add(enrolment)
        self._session.flush()

    def claim(self, enrolment_id: str, *, now: datetime) -> bool:
        """Use the token up, if it is unused and in time; of many at once one succeeds."""
        query = update(Enrolment).where(
            Enrolment.tenant_id == self._tenant_id,
            Enrolment.id == enrolment_id,
            Enrolment.redeemed.is_(None),
            Enrolment.expires > now,
        )
        claimed = self._session.execute(query.values(redeemed=now).returning(Enrolment.id))
        return claimed.first() is not None

    def name_device(self, enrolment_id: str, device_id: str) -> None:
        """Record which device used the token."""
        self._session.execute(
            update(Enrolment)
            .where(Enrolment.tenant_id == self._tenant_id, Enrolment.id == enrolment_id)
            .values(device_id=device_id)
        )


class EnrolmentDirectory:
    """Finds the tenant of an enrolment token, before a tenant is known. It changes nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, token_hash: str) -> Enrolment | None:
        """Return the enrolment whose token has this keyed hash."""
        return self._session.scalar(select(Enrolment).where(Enrolment.token_hash == token_hash))


class DeviceDirectory:
    """Finds the tenant of a device that wants a token, before a tenant is known. It changes nothing."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def find(self, device_id: str) -> Device | None:
        """Return the device with this id."""
        return self._session.get(Device, device_id, populate_existing=True)
