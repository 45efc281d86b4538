"""What readers get: series, their points and their newest samples."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
from pydantic import BaseModel

from tensorguard.platform.db.tables.telemetry import Series
from tensorguard.platform.telemetry.repository import Point


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


class LatestView(BaseModel):
    """A series and its newest sample; `ts` is nanoseconds since 1970."""

    series: SeriesView
    ts: int
    value: float

    @classmethod
    def of(cls, found: tuple[Series, int, float]) -> LatestView:
        """Return the view of a row."""
        series, ts, value = found
        return cls(series=SeriesView.of(series), ts=ts, value=value)


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
