"""The task that signs the ends of the trails that moved, at an interval, until the app stops."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from tensorguard.errors import TensorGuardError
from tensorguard.platform.audit.service import sign_head
from tensorguard.platform.db.tables.audit import AuditChain, AuditHead
from tensorguard.platform.state import PlatformState

log = logging.getLogger(__name__)
BATCH = 100  # tenants per round; the rest follow at the next one


def sign_moved(state: PlatformState) -> int:
    """Sign every trail that has moved since its last head; return how many were signed.

    A trail that does not verify is logged, not signed, and does not stop the others.
    """
    with state.sessions() as session:
        signed = (
            select(AuditHead.tenant_id)
            .where(AuditHead.tenant_id == AuditChain.tenant_id, AuditHead.seq == AuditChain.seq)
            .exists()
        )
        moved = list(
            session.scalars(
                select(AuditChain.tenant_id).where(AuditChain.seq > 0, ~signed).limit(BATCH)
            )
        )
    done = 0
    for tenant_id in moved:
        try:
            with state.sessions.begin() as session:
                sign_head(session, tenant_id, keys=state.keys, now=state.now())
            done += 1
        except (TensorGuardError, SQLAlchemyError, OSError) as error:
            log.error(  # noqa: TRY400 - the stack says nothing that the message does not
                "an audit head could not be signed",
                extra={"tenant": tenant_id, "reason": str(error)[:500]},
            )
    return done


async def _keep_signing(state: PlatformState) -> None:
    while True:
        await asyncio.sleep(state.settings.audit_head_seconds)
        try:
            await asyncio.to_thread(sign_moved, state)
        except (SQLAlchemyError, OSError):
            log.exception("audit heads could not be signed")


@asynccontextmanager
async def periodic_heads(state: PlatformState) -> AsyncIterator[None]:
    """Sign heads while the block runs."""
    task = asyncio.create_task(_keep_signing(state), name="audit-heads")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
