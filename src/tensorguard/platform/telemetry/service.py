"""A batch is stored whole, once, and answered after its commit; what cannot be stored is named."""

from __future__ import annotations

from typing import Final

from sqlalchemy.orm import Session

from tensorguard.errors import InputError
from tensorguard.platform.db.tables.telemetry import Series
from tensorguard.platform.telemetry.queries import RangeQuery
from tensorguard.platform.telemetry.repository import (
    Point,
    SampleRepository,
    SeriesRepository,
)

MAX_QUERY_SERIES: Final = 100  # of one query; each is a read of its own


class QueryTooLarge(InputError):
    code = "query_too_large"
    remedy = "Match fewer series, take a longer step or a shorter time."


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
