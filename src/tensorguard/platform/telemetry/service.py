"""A batch is stored whole, once, and answered after its commit; what cannot be stored is named."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import event
from sqlalchemy.orm import Session

from tensorguard.errors import InputError
from tensorguard.platform.db.tables.telemetry import Series
from tensorguard.platform.principal import Principal
from tensorguard.platform.telemetry.parts import TelemetryParts
from tensorguard.platform.telemetry.points import Points
from tensorguard.platform.telemetry.queries import RangeQuery
from tensorguard.platform.telemetry.repository import (
    BatchRepository,
    Point,
    SampleRepository,
    SeriesRepository,
)
from tensorguard.platform.telemetry.rows import Rows
from tensorguard.wire.telemetry import Answer

MAX_QUERY_SERIES: Final = 100  # of one query; each is a read of its own
UNUSED: Final = -1  # no series has this id; a series all of whose samples were refused is not made


class QueryTooLarge(InputError):
    code = "query_too_large"
    remedy = "Match fewer series, take a longer step or a shorter time."


@dataclass(frozen=True, slots=True)
class BatchKey:
    """What makes a retry recognisable: the sender's key or, without one, the body itself."""

    key: bytes
    body: bytes

    @classmethod
    def of(cls, body: bytes, given: str | None) -> BatchKey:
        """Return the key of a decompressed body and the key that its sender gave it."""
        digest = hashlib.sha256(body).digest()
        if given is None:
            return cls(digest, digest)
        return cls(hashlib.sha256(b"key\0" + given.encode()).digest(), digest)


def ingest(
    session: Session,
    parts: TelemetryParts,
    principal: Principal,
    points: Points,
    *,
    batch: BatchKey,
    now: datetime,
) -> Answer:
    """Store the points of one request, or return the answer that the same batch got before."""
    batches = BatchRepository(session, tenant_id=principal.tenant_id)
    before = batches.claim(principal=principal.actor, key=batch.key, body=batch.body, now=now)
    if before is not None:
        return before
    accepted = _store(session, parts, principal.tenant_id, points, now) if points.times else 0
    answer = Answer(
        accepted=accepted,
        duplicates=len(points.times) - accepted,
        rejected=points.rejections,
        rejected_total=points.rejected,
    )
    batches.settle(principal=principal.actor, key=batch.key, answer=answer)
    event.listen(session, "after_commit", lambda _: parts.counters.count(answer), once=True)
    return answer


def _store(
    session: Session, parts: TelemetryParts, tenant_id: str, points: Points, now: datetime
) -> int:
    used = [points.identities[position] for position in sorted(set(points.series))]
    ids = parts.series.find(tenant_id, used)
    unknown = [identity for identity in used if identity not in ids]
    if unknown:
        ids |= SeriesRepository(session, tenant_id=tenant_id).resolve(unknown, now=now)
    rows = Rows.of(points, [ids.get(identity, UNUSED) for identity in points.identities])
    days = parts.days.missing(rows.days())
    if days:
        parts.store.prepare(session, days)

    def remember(_: Session) -> None:
        parts.series.put(tenant_id, ids)
        parts.days.put(days)

    event.listen(session, "after_commit", remember, once=True)
    accepted = parts.store.insert(session, rows)
    parts.store.advance(session, rows.newest())
    return accepted


def query(
    session: Session,
    tenant_id: str,
    asked: RangeQuery,
    *,
    max_points: int,
) -> list[tuple[Series, list[Point]]]:
    """Return the samples, or their aggregates, of one series or of all that match.

    Raises `QueryTooLarge` rather than leave anything out, and `NotFound` for an unknown series id.
    """
    repository = SeriesRepository(session, tenant_id=tenant_id)
    if isinstance(asked.wanted, int):
        found = [repository.get(asked.wanted)]
    else:
        found = repository.page(asked.wanted, after=0, limit=MAX_QUERY_SERIES + 1)
    if len(found) > MAX_QUERY_SERIES:
        raise QueryTooLarge(f"more than {MAX_QUERY_SERIES} series match")
    length = asked.span.end - asked.span.start
    step = asked.step or length
    if asked.by is not None and -(-length // step) * len(found) > max_points:
        raise QueryTooLarge(f"a query may return at most {max_points} points")
    result, left = list[tuple[Series, list[Point]]](), max_points
    for series in found:
        samples = SampleRepository(session, series=series)
        if asked.by is None:
            points = samples.raw(asked.span, limit=left + 1)
        else:
            points = samples.aggregate(asked.span, step=step, by=asked.by)
        left -= len(points)
        if left < 0:
            raise QueryTooLarge(f"a query may return at most {max_points} points")
        result.append((series, points))
    return result
