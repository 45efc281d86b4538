"""Verifying trails where they are: every event, every head, and the end that the chain's row names."""

from __future__ import annotations

from collections.abc import Sequence

from tensorguard.crypto.trust import TrustStore
from tensorguard.platform.audit.chain import AuditBroken, Head, Walk
from tensorguard.platform.audit.export import PROGRESS_EVERY, Progress, Verified
from tensorguard.platform.audit.repository import AuditRepository, event_of
from tensorguard.platform.audit.service import open_row


def verify(
    trail: AuditRepository,
    *,
    tenant: str,
    trust: TrustStore,
    kept: Sequence[Head] = (),
    progress: Progress,
) -> Verified:
    """Return what holds of a stored trail. `kept` are verified heads that were kept elsewhere.

    The session must see one moment of the database. Raises `AuditBroken` naming the event.
    """
    end = trail.end()
    walk = Walk(trail.tenant_id, expected=kept)
    rows = trail.heads()
    row = next(rows, None)
    heads = signed = 0
    for event in trail.events():
        walk.event(event_of(event), event.hash)
        if row is not None and row.seq == event.seq:
            walk.head(open_row(row, trust))
            heads, signed = heads + 1, row.seq
            row = next(rows, None)
        if event.seq % PROGRESS_EVERY == 0:
            progress(event.seq)
    if row is not None:  # its event is not there any more
        walk.head(open_row(row, trust))
    reached = walk.end()
    if reached != end:
        raise AuditBroken(
            f"the trail ends at event {reached.seq}, not at event {end.seq}", seq=reached.seq + 1
        )
    progress(reached.seq)
    signed = max([signed, *(head.seq for head in kept)])
    return Verified(trail.tenant_id, tenant, reached.seq, heads, signed)
