"""All SQL about the packs of one tenant."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound
from tensorguard.platform.db.tables.packs import Pack
from tensorguard.platform.db.upsert import insert_if_absent


class PackRepository:
    """The registered packs of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(Pack).where(Pack.tenant_id == tenant_id)

    def find(self, pack_id: str) -> Pack | None:
        """Return one pack, if it is registered."""
        return self._session.scalar(self._mine.where(Pack.pack_id == pack_id))

    def get(self, pack_id: str, *, lock: bool = False) -> Pack:
        """Return one pack, locked against other writers if asked. Raises `NotFound`."""
        query = self._mine.where(Pack.pack_id == pack_id)
        if lock:
            query = query.with_for_update().execution_options(populate_existing=True)
        pack = self._session.scalar(query)
        if pack is None:
            raise NotFound(f"there is no pack {pack_id[:64]}")
        return pack

    def page(self, *, after: str | None, limit: int) -> list[Pack]:
        """Return up to `limit` packs whose id comes after `after`, by id."""
        query = self._mine.order_by(Pack.pack_id).limit(limit)
        if after is not None:
            query = query.where(Pack.pack_id > after)
        return list(self._session.scalars(query))

    def active_ids(self, *, limit: int) -> list[str]:
        """Return the ids of up to `limit` packs that are not retired, the newest first."""
        query = (
            select(Pack.pack_id)
            .where(Pack.tenant_id == self._tenant_id, Pack.retired.is_(None))
            .order_by(Pack.created.desc(), Pack.pack_id)
            .limit(limit)
        )
        return list(self._session.scalars(query))

    def add_if_absent(
        self,
        *,
        pack_id: str,
        name: str,
        version: str,
        size: int,
        sha256: str,
        signer_name: str,
        signer_key_id: str,
        created: datetime,
        created_by: str,
    ) -> bool:
        """Store a pack unless it is registered; say whether it was stored."""
        values = {
            "tenant_id": self._tenant_id,
            "pack_id": pack_id,
            "name": name,
            "version": version,
            "size": size,
            "sha256": sha256,
            "signer_name": signer_name,
            "signer_key_id": signer_key_id,
            "created": created,
            "created_by": created_by,
            "retired": None,
        }
        return insert_if_absent(self._session, Pack, values)
