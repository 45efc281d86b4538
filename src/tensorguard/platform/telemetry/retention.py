"""Samples end with their tenant's retention: whole days are dropped, what is left of others deleted.

A partition holds all tenants, so it is dropped when the longest retention has passed it. Rows of
tenants that keep less are deleted before that. Stored batches are forgotten once their samples would
be refused for their age anyway; letters go with the samples' retention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from sqlalchemy import delete, func, select, text
from sqlalchemy.orm import Session

from tensorguard.platform.db.tables.people import Tenant
from tensorguard.platform.db.tables.telemetry import (
    DocumentRow,
    IngestBatch,
    Latest,
    SampleRow,
    Series,
    Submission,
    TelemetryPolicy,
)
from tensorguard.platform.telemetry.parts import TelemetryParts
from tensorguard.platform.telemetry.stores import DOCUMENTS, PARTITION_LOCK, SAMPLES
from tensorguard.settings import Settings
from tensorguard.wire.telemetry import nanoseconds

CHUNK: Final = 200  # series whose rows are deleted in one statement
MAX_LETTERS: Final = 10_000  # of one tenant; the oldest go

Dated = SampleRow | DocumentRow | Latest

_PARTITION = re.compile(r"(?:sample|document)_p(\d{8})", re.ASCII)


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep removed."""

    partitions: tuple[str, ...]
    samples: int
    batches: int
    letters: int


def load_policies(session: Session, parts: TelemetryParts) -> dict[str, int]:
    """Let the intake know every tenant's policy; return the days of those that have their own."""
    policies = list(session.scalars(select(TelemetryPolicy)))
    days = {row.tenant_id: row.retention_days for row in policies if row.retention_days}
    parts.retention.clear()
    parts.retention.update(days)
    parts.quotas.policies = {row.tenant_id: (row.device_rate, row.tenant_rate) for row in policies}
    return days


def sweep(session: Session, parts: TelemetryParts, settings: Settings, now: datetime) -> Swept:
    """Remove what is over. The caller commits, and clears the days that are known."""
    own = load_policies(session, parts)
    tenants = list(session.scalars(select(Tenant.id)))
    usual = settings.telemetry_retention_days
    longest = max((own.get(tenant, usual) for tenant in tenants), default=usual)
    postgresql = session.get_bind().dialect.name == "postgresql"
    dropped = _drop_days(session, now - timedelta(days=longest)) if postgresql else ()
    deleted = 0
    for tenant in tenants:
        days = own.get(tenant, usual)
        whole = postgresql and days >= longest  # the partitions are gone already
        tables = (Latest,) if whole else (SampleRow, DocumentRow, Latest)
        deleted += _delete_rows(session, tenant, nanoseconds(now - timedelta(days=days)), tables)
    batches = session.execute(
        delete(IngestBatch).where(
            IngestBatch.received < now - timedelta(days=settings.max_sample_age_days + 1)
        )
    )
    letters = _prune_letters(session, tenants, own, usual, now)
    return Swept(tuple(dropped), deleted, _count(batches), letters)


def _count(result: object) -> int:
    return max(int(getattr(result, "rowcount", 0)), 0)


def _drop_days(session: Session, before: datetime) -> list[str]:
    """Drop the partitions whose last moment is before `before`."""
    session.execute(text("SET LOCAL lock_timeout = '5s'"))
    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": PARTITION_LOCK})
    dropped = []
    for parent in (SAMPLES, DOCUMENTS):
        names = session.scalars(
            text(
                "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid "
                "WHERE i.inhparent = to_regclass(:parent) ORDER BY 1"
            ),
            {"parent": parent},
        )
        for name in list(names):
            match = _PARTITION.fullmatch(name)
            if match is None:
                continue
            day = datetime.strptime(match[1], "%Y%m%d").replace(tzinfo=UTC)
            if day + timedelta(days=1) <= before:
                session.execute(text(f'DROP TABLE "{name}"'))  # the pattern allows digits only
                dropped.append(name)
    return dropped


def _delete_rows(
    session: Session, tenant_id: str, before: int, tables: Sequence[type[Dated]]
) -> int:
    ids = list(session.scalars(select(Series.id).where(Series.tenant_id == tenant_id)))
    deleted = 0
    for begin in range(0, len(ids), CHUNK):
        chunk = ids[begin : begin + CHUNK]
        for table in tables:
            done = session.execute(
                delete(table).where(table.series_id.in_(chunk), table.ts < before)
            )
            deleted += 0 if table is Latest else _count(done)
    return deleted


def _prune_letters(
    session: Session,
    tenants: list[str],
    own: Mapping[str, int],
    usual: int,
    now: datetime,
) -> int:
    removed = 0
    for tenant in tenants:
        oldest = now - timedelta(days=own.get(tenant, usual))
        mine = Submission.tenant_id == tenant
        removed += _count(
            session.execute(delete(Submission).where(mine, Submission.received < oldest))
        )
        count = session.scalar(select(func.count()).select_from(Submission).where(mine)) or 0
        if count > MAX_LETTERS:
            last = session.scalar(
                select(Submission.id)
                .where(mine)
                .order_by(Submission.id)
                .offset(count - MAX_LETTERS - 1)
                .limit(1)
            )
            removed += _count(
                session.execute(delete(Submission).where(mine, Submission.id <= last))
            )
    return removed
