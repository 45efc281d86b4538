"""The task that keeps the policies: it publishes, rotates, rewraps, retires and destroys in time.

Several platform processes may run it: a ring's row is locked while it is decided about, and what one
did, the next one sees in the history. A ring whose custody fails does not stop the others.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import datetime

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.errors import TensorGuardError
from tensorguard.keys.provider import KeyNotFound, KeyProvider, KeyState
from tensorguard.platform.keys.envelope import Envelope
from tensorguard.platform.keys.repository import KeyringDirectory
from tensorguard.platform.keys.rings import DATA_AT_REST, PLATFORM_TENANT, POLICY_ACTOR
from tensorguard.platform.keys.service import Keyrings, record_destroyed
from tensorguard.platform.state import PlatformState
from tensorguard.platform.tenant_secrets import service as tenant_secrets
from tensorguard.platform.users.tenants import create_tenant, find_tenant

log = logging.getLogger(__name__)
FAILURES = (TensorGuardError, SQLAlchemyError, OSError)


def keyrings(state: PlatformState, session: Session, tenant_id: str) -> Keyrings:
    """Return a tenant's rings, for the policy task."""
    return Keyrings(
        session,
        tenant_id=tenant_id,
        actor=POLICY_ACTOR,
        keys=state.keys,
        envelope=state.envelope,
        now=state.now(),
    )


def keep_policies(state: PlatformState) -> int:
    """Do all that is due; return how many rings could not be looked after."""
    failed = 0
    with state.sessions.begin() as session:
        platform_id = platform_tenant(session, state)
        keyrings(state, session, platform_id).adopt()
    with state.sessions() as session:
        known = KeyringDirectory(session).every()
    for tenant_id, name in known:
        try:
            with state.sessions.begin() as session:
                keyrings(state, session, tenant_id).apply_policy(name)
        except FAILURES as error:
            failed += 1
            _report("a key's policy could not be kept", tenant_id, name, error)
    try:
        rewrap_secrets(
            state.sessions,
            keys=state.keys,
            envelope=state.envelope,
            actor=POLICY_ACTOR,
            now=state.now(),
        )
        _purge(state, platform_id)
    except FAILURES as error:
        failed += 1
        _report("sealed secrets could not be looked after", platform_id, DATA_AT_REST, error)
    return failed


def platform_tenant(session: Session, state: PlatformState) -> str:
    """Return the id of the tenant that owns the platform's rings, made if it was absent."""
    found = find_tenant(session, PLATFORM_TENANT)
    made = found or create_tenant(session, PLATFORM_TENANT, actor=POLICY_ACTOR, now=state.now())
    return made.id


def rewrap_secrets(
    sessions: sessionmaker[Session],
    *,
    keys: KeyProvider,
    envelope: Envelope,
    actor: str,
    now: datetime,
) -> int:
    """Wrap every secret's data key under the active version; return how many were behind."""
    try:
        versions = keys.versions(DATA_AT_REST)
    except KeyNotFound:  # nothing was ever sealed
        return 0
    actives = [info for info in versions if info.state is KeyState.active and not info.disabled]
    if not actives:
        return 0
    version = actives[0].version
    with sessions() as session:
        behind = tenant_secrets.behind(session, version)
    count = 0
    for tenant_id in behind:
        done = tenant_secrets.BATCH
        while done == tenant_secrets.BATCH:
            with sessions.begin() as session:
                done = tenant_secrets.rewrap(
                    session, tenant_id, version, envelope=envelope, actor=actor, now=now
                )
            count += done
    return count


def _purge(state: PlatformState, platform_id: str) -> None:
    for gone in state.keys.purge():
        with state.sessions.begin() as session:
            record_destroyed(session, gone, platform_id=platform_id, now=state.now())


def _report(what: str, tenant_id: str, name: str, error: Exception) -> None:
    fields = {"tenant": tenant_id, "key": name, "reason": str(error)[:500]}
    log.error(what, extra=fields)


async def _keep(state: PlatformState) -> None:
    while True:
        await asyncio.sleep(state.settings.key_policy_seconds)
        try:
            await asyncio.to_thread(keep_policies, state)
        except FAILURES:
            log.exception("key policies could not be kept")


@asynccontextmanager
async def key_policies(state: PlatformState) -> AsyncIterator[None]:
    """Keep the policies while the block runs."""
    task = asyncio.create_task(_keep(state), name="key-policies")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
