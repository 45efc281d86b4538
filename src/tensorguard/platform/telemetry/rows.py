"""Samples on their way to the database: sorted, each (series, time) once, the first one wins.

All writers insert in the same order, so that two that overlap wait for each other and never
deadlock. A row remembers the batch that it came in, so that each batch gets its own answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tensorguard.platform.telemetry.points import Floats, Integers
from tensorguard.wire.telemetry import NANOSECONDS

DAY = 86_400 * NANOSECONDS


@dataclass(frozen=True, slots=True)
class Rows:
    """Four columns of equal length, sorted by series and time, without a repeated pair."""

    series: Integers
    times: Integers
    values: Floats
    batches: Integers

    @classmethod
    def of(cls, series: Integers, times: Integers, values: Floats, batches: Integers) -> Rows:
        """Return sorted rows; of two with the same series and time the first one stays."""
        order = np.lexsort((times, series))  # stable: the first sample of equals stays first
        series, times = series[order], times[order]
        first = np.ones(len(series), dtype=bool)
        first[1:] = (series[1:] != series[:-1]) | (times[1:] != times[:-1])
        values, batches = values[order], batches[order]
        if first.all():
            return cls(series, times, values, batches)
        return cls(series[first], times[first], values[first], batches[first])

    def __len__(self) -> int:
        return len(self.series)

    def newest(self) -> Rows:
        """Return the last row of each series."""
        last = np.ones(len(self.series), dtype=bool)
        last[:-1] = self.series[1:] != self.series[:-1]
        return Rows(self.series[last], self.times[last], self.values[last], self.batches[last])

    def days(self) -> list[int]:
        """Return the days since 1970 that the rows touch."""
        return [int(day) for day in np.unique(self.times // DAY)]

    def columns(self) -> tuple[list[int], list[int], list[float]]:
        """Return the columns of the table as plain lists."""
        return self.series.tolist(), self.times.tolist(), self.values.tolist()

    def per_batch(self, count: int) -> list[int]:
        """Return how many rows each of `count` batches has."""
        return [int(n) for n in np.bincount(self.batches, minlength=count)]

    def only(self, pairs: Sequence[tuple[int, int]]) -> Rows:
        """Return the rows with these series and times, all of which must be here."""
        if not pairs:
            nothing = np.zeros(0, dtype=np.int64)
            return Rows(nothing, nothing, nothing.astype(np.float64), nothing)
        wanted = set(pairs)
        rows = zip(self.series.tolist(), self.times.tolist(), strict=True)
        keep = np.fromiter((row in wanted for row in rows), dtype=bool, count=len(self))
        return Rows(self.series[keep], self.times[keep], self.values[keep], self.batches[keep])


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
