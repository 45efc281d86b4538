"""Samples on their way to the database: sorted, each (series, time) once, the first one wins.

All writers insert in the same order, so that two that overlap wait for each other and never
deadlock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tensorguard.platform.telemetry.points import Points
from tensorguard.wire.telemetry import NANOSECONDS

DAY = 86_400 * NANOSECONDS

Integers = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """Three columns of equal length, sorted by series and time, without a repeated pair."""

    series: Integers
    times: Integers
    values: Floats

    @classmethod
    def of(cls, points: Points, ids: Sequence[int]) -> Rows:
        """Return the rows of `points`; `ids` are the series ids by position."""
        series = np.asarray(ids, dtype=np.int64)[np.frombuffer(points.series, dtype=np.int64)]
        times = np.frombuffer(points.times, dtype=np.int64)
        order = np.lexsort((times, series))  # stable: the first sample of equals stays first
        series, times = series[order], times[order]
        first = np.ones(len(series), dtype=bool)
        first[1:] = (series[1:] != series[:-1]) | (times[1:] != times[:-1])
        values = np.frombuffer(points.values, dtype=np.float64)[order]
        return cls(series[first], times[first], values[first])

    def __len__(self) -> int:
        return len(self.series)

    def newest(self) -> Rows:
        """Return the last row of each series."""
        last = np.ones(len(self.series), dtype=bool)
        last[:-1] = self.series[1:] != self.series[:-1]
        return Rows(self.series[last], self.times[last], self.values[last])

    def days(self) -> list[int]:
        """Return the days since 1970 that the rows touch."""
        return [int(day) for day in np.unique(self.times // DAY)]

    def columns(self) -> tuple[list[int], list[int], list[float]]:
        """Return the columns as plain lists."""
        return self.series.tolist(), self.times.tolist(), self.values.tolist()


_COPY_ROW = np.dtype(
    [
        ("fields", ">i2"),
        ("series_size", ">i4"),
        ("series", ">i8"),
        ("time_size", ">i4"),
        ("time", ">i8"),
        ("value_size", ">i4"),
        ("value", ">f8"),
    ]
)
_COPY_HEADER = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_COPY_TRAILER = b"\xff\xff"


def copy_bytes(rows: Rows) -> bytes:
    """Return PostgreSQL's binary COPY format of (series_id, ts, value)."""
    out = np.empty(len(rows), dtype=_COPY_ROW)
    out["fields"] = 3
    out["series_size"] = out["time_size"] = out["value_size"] = 8
    out["series"], out["time"], out["value"] = rows.series, rows.times, rows.values
    return b"".join((_COPY_HEADER, out.tobytes(), _COPY_TRAILER))
