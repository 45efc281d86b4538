"""Verifying and exporting trails from the command line."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tensorguard.crypto import canonical
from tensorguard.crypto.files import atomic_file, read_bounded
from tensorguard.crypto.hybrid import MAX_PUBLIC_KEY_FILE, HybridPublicKey
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import NotFound
from tensorguard.keys.registry import open_provider
from tensorguard.platform import administration
from tensorguard.platform.audit import export, online
from tensorguard.platform.audit.chain import AuditBroken, Head
from tensorguard.platform.audit.export import Progress, Verified
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.audit.service import open_head, sign_head, trust_of
from tensorguard.settings import Settings

log = logging.getLogger(__name__)
MAX_HEAD_FILE: Final = 64 * 1024  # bytes; an envelope has about 5,000
MAX_HEADS: Final = 1000  # that are given by hand


class NoSuchTrail(NotFound):
    code = "no_trail"
    remedy = "Make a tenant with `tensorguard user create-admin` first."


def trust_file(path: Path) -> TrustStore:
    """Return the trust store of one public key file, or of a folder of them."""
    if path.is_dir():
        return TrustStore.from_folder(path)
    name, key = HybridPublicKey.from_json(read_bounded(path, limit=MAX_PUBLIC_KEY_FILE))
    return TrustStore.from_keys({name: key})


def head_files(paths: Sequence[Path], trust: TrustStore) -> list[Head]:
    """Return the heads in envelope files, verified. White space around an envelope is harmless."""
    heads = []
    for path in paths[:MAX_HEADS]:
        value = canonical.parse(read_bounded(path, limit=MAX_HEAD_FILE), limit=MAX_HEAD_FILE)
        heads.append(open_head(canonical.encode(value), trust))
    return heads


def verify_export(
    path: Path, *, trust: Path, heads: Sequence[Path] = (), progress: Progress
) -> Verified:
    """Return what holds of an export, with nothing but the file and public keys."""
    store = trust_file(trust)
    if not path.is_file():
        raise NotFound(f"there is no file {path}")
    with path.open("rb") as file:
        return export.verify(file, trust=store, kept=head_files(heads, store), progress=progress)


def verify_stored(
    settings: Settings,
    *,
    tenant: str | None,
    trust: Path | None = None,
    heads: Sequence[Path] = (),
    progress: Progress,
) -> Iterator[Verified]:
    """Yield what holds of each trail in the database, or of one.

    Without `trust` the heads are checked against the keys of the configured provider.
    """
    store = trust_file(trust) if trust else trust_of(open_provider(settings))
    kept = head_files(heads, store)
    with administration.reading(settings) as session:
        found = administration.tenants(session, tenant)
        if not found:
            raise NoSuchTrail("the database holds no tenant, so there is nothing to verify")
        known = {owner.id for owner in found}
        if stray := {head.tenant_id for head in kept} - known:
            raise AuditBroken(f"a head is of the tenant {min(stray)}, which is not here", seq=1)
        for owner in found:
            yield online.verify(
                AuditRepository(session, tenant_id=owner.id),
                tenant=owner.name,
                trust=store,
                kept=[head for head in kept if head.tenant_id == owner.id],
                progress=progress,
            )


def write_export(settings: Settings, *, tenant: str, path: Path, progress: Progress) -> int:
    """Write the trail of a tenant to `path` (0600), its end signed first; return its length.

    A trail that is broken is not signed, and is exported all the same: it is evidence.
    """
    keys = open_provider(settings)
    try:
        with administration.writing(settings) as session:
            (owner,) = administration.tenants(session, tenant)
            sign_head(session, owner.id, keys=keys, now=administration.now())
    except AuditBroken as error:
        log.warning("the end of the trail was not signed: %s", error)
    with administration.reading(settings) as session, atomic_file(path) as file:
        (owner,) = administration.tenants(session, tenant)
        trail = AuditRepository(session, tenant_id=owner.id)
        return export.write(file, trail, tenant=tenant, now=administration.now(), progress=progress)
