"""What readers get: series, their points and their newest samples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from pydantic import BaseModel

from tensorguard.platform.db.tables.telemetry import Series
from tensorguard.platform.telemetry.repository import Newest, Point


class SeriesView(BaseModel):
    """One series."""

    id: int
    name: str
    unit: str
    kind: str
    labels: dict[str, str]
    device_id: str | None
    created: datetime

    @classmethod
    def of(cls, series: Series) -> SeriesView:
        """Return the view of a row."""
        return cls(
            id=series.id,
            name=series.name,
            unit=series.unit,
            kind=series.kind,
            labels=series.labels,
            device_id=series.device_id,
            created=series.created,
        )


class LatestPage(msgspec.Struct):
    """Part of the newest samples, and where they go on; None ends them."""

    items: Sequence[Newest]
    next_cursor: str | None


class SeriesPoints(msgspec.Struct):
    """A series and its points, each (nanoseconds since 1970, number), in order of time."""

    id: int
    name: str
    unit: str
    kind: str
    labels: dict[str, str]
    points: Sequence[Point]

    @classmethod
    def of(cls, series: Series, points: Sequence[Point]) -> SeriesPoints:
        """Return the view of a series with its points."""
        return cls(series.id, series.name, series.unit, series.kind, series.labels, points)


class QueryResult(msgspec.Struct):
    """What a query found; `start` and `end` are what was asked for, in nanoseconds since 1970."""

    start: int
    end: int
    step: int | None
    series: Sequence[SeriesPoints]
