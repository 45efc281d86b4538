"""A pack enters the registry verified, whole and once; retired, it is named by no grant and never returns."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from tensorguard.crypto.trust import TrustStore, TrustStoreUnusable
from tensorguard.errors import Conflict, Unavailable
from tensorguard.moai import pack as moai
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.packs import Pack
from tensorguard.platform.packs.repository import PackRepository
from tensorguard.platform.packs.store import PackStore
from tensorguard.platform.principal import Principal
from tensorguard.settings import Settings
from tensorguard.wire.grants import MAX_PACKS


class RegistryClosed(Unavailable):
    """Empty means refuse: without trusted signers no pack is accepted."""

    code = "registry_closed"
    remedy = (
        "Set TG_TRUST_STORE to a folder with the public keys (*.pub.json) of your pack signers."
    )


class PackRetired(Conflict):
    code = "pack_retired"
    remedy = "Build and sign a new version; a retired pack does not come back."


class RegistryFull(Conflict):
    code = "registry_full"
    remedy = "Retire a pack that is no longer served."


@dataclass(frozen=True, slots=True)
class Registered:
    """A registered pack, and whether this request registered it."""

    pack: Pack
    created: bool


def register(
    session: Session,
    principal: Principal,
    data: bytes,
    *,
    settings: Settings,
    store: PackStore,
    now: datetime,
) -> Registered:
    """Verify a pack and register it. Sent again, it is the same pack.

    Raises what `moai.pack` raises, `RegistryClosed`, `RegistryFull` or `PackRetired`; then nothing
    is stored.
    """
    # (1) it is a pack, signed by someone the operator trusts
    verified = moai.verify(moai.read(data, limit=settings.max_pack_bytes), _trust(settings))
    # (2) its row, in this transaction; of two at once the second waits for the first
    packs = PackRepository(session, tenant_id=principal.tenant_id)
    digest = hashlib.sha256(data).hexdigest()
    added = packs.add_if_absent(
        pack_id=verified.pack_id,
        name=verified.manifest.name,
        version=verified.manifest.version,
        size=len(data),
        sha256=digest,
        signer_name=verified.signer_name[:64],
        signer_key_id=verified.signer_key_id,
        created=now,
        created_by=principal.actor,
    )
    row = packs.get(verified.pack_id)
    if not added:
        if row.retired is not None:
            raise PackRetired("this pack was retired")
        return Registered(row, created=False)
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action="pack.registered",
        subject=f"pack:{row.pack_id}",
        now=now,
        details={
            "name": row.name,
            "sha256": digest,
            "signer_key_id": row.signer_key_id,
            "version": row.version,
        },
    )
    # (3) a grant must be able to name them all (the append above lets one count at a time)
    if len(packs.active_ids(limit=MAX_PACKS + 1)) > MAX_PACKS:
        raise RegistryFull(f"a tenant has at most {MAX_PACKS} active packs")
    # (4) the content; if the commit fails after this, nothing names the file
    store.write(row.pack_id, data)
    return Registered(row, created=True)


def retire(session: Session, principal: Principal, pack_id: str, *, now: datetime) -> Pack:
    """Take a pack out of new grants. Twice changes nothing more. Raises `NotFound`."""
    row = PackRepository(session, tenant_id=principal.tenant_id).get(pack_id, lock=True)
    if row.retired is not None:
        return row
    row.retired = now
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action="pack.retired",
        subject=f"pack:{row.pack_id}",
        now=now,
        details={"name": row.name, "version": row.version},
    )
    return row


def _trust(settings: Settings) -> TrustStore:
    if settings.trust_store is None:
        raise RegistryClosed("this platform trusts no pack signer")
    try:
        return TrustStore.from_folder(settings.trust_store)
    except TrustStoreUnusable as error:
        raise RegistryClosed("this platform's trust store cannot be used") from error
