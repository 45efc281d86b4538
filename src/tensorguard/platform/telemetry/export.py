"""Samples as CSV or Parquet: the same columns in both, in order of series and time, in bounded memory.

Columns: series_id, name, unit, kind, labels (JSON), ts (nanoseconds since 1970), value (a number, or
null), document (JSON text of a value that is no number, or null).
"""

from __future__ import annotations

import csv
import io
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import IO, Any, Final

import msgspec
from sqlalchemy.orm import Session

from tensorguard.errors import TensorGuardError
from tensorguard.platform.telemetry.queries import RangeQuery
from tensorguard.platform.telemetry.repository import (
    SampleRepository,
    SeriesFacts,
    SeriesRepository,
    Span,
)
from tensorguard.platform.telemetry.service import MAX_QUERY_SERIES, QueryTooLarge

CHUNK: Final = 20_000  # rows in memory at once
COLUMNS: Final = ("series_id", "name", "unit", "kind", "labels", "ts", "value", "document")
PIECE: Final = 1 << 18  # bytes of a file that are sent at once

Row = tuple[int, str, str, str, str, int, float | None, str | None]
Sessions = Callable[[], AbstractContextManager[Session]]


class ParquetNotInstalled(TensorGuardError):
    code = "parquet_not_installed"
    status = 501
    remedy = "Ask for format=csv, or let the operator install `tensorguard[parquet]`."


@dataclass(frozen=True, slots=True)
class Export:
    """What is exported, and how it is read: chunk by chunk, each in a session of its own."""

    sessions: Sessions
    tenant_id: str
    series: list[SeriesFacts]
    span: Span
    max_points: int

    @classmethod
    def of(
        cls, session: Session, sessions: Sessions, tenant_id: str, asked: RangeQuery, limit: int
    ) -> Export:
        """Return the export of what `asked` selects. Raises `NotFound` or `QueryTooLarge`."""
        repository = SeriesRepository(session, tenant_id=tenant_id)
        if isinstance(asked.wanted, int):
            found = [repository.get(asked.wanted)]
        else:
            found = repository.page(asked.wanted, after=0, limit=MAX_QUERY_SERIES + 1)
        if len(found) > MAX_QUERY_SERIES:
            raise QueryTooLarge(f"more than {MAX_QUERY_SERIES} series match")
        count = sum(SampleRepository(session, series=one).size(asked.span) for one in found)
        if count > limit:
            raise QueryTooLarge(f"an export may have at most {limit} samples; these are {count}")
        facts = [
            SeriesFacts(
                one.id, one.name, one.unit, one.kind, one.labels, one.device_id, one.created
            )
            for one in found
        ]
        return cls(sessions, tenant_id, facts, asked.span, limit)

    def chunks(self) -> Iterator[list[Row]]:
        """Yield the rows, never more than `CHUNK` at once."""
        for one in self.series:
            labels = msgspec.json.encode(one.labels, order="deterministic").decode()
            start = self.span.start
            while True:
                with self.sessions() as session:
                    session.connection(execution_options={"tensorguard_read_only": True})
                    repository = SampleRepository(session, series=one)
                    points = repository.raw(Span(start, self.span.end), limit=CHUNK)
                if points:
                    yield [
                        (one.id, one.name, one.unit, one.kind, labels, ts, *_split(value))
                        for ts, value in points
                    ]
                if len(points) < CHUNK:
                    break
                start = points[-1][0] + 1


def _split(value: float | msgspec.Raw) -> tuple[float | None, str | None]:
    if isinstance(value, msgspec.Raw):
        return None, bytes(value).decode()
    return value, None


def as_csv(export: Export) -> Iterator[bytes]:
    """Yield RFC 4180 text, with a line of names first."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(COLUMNS)
    for chunk in export.chunks():
        writer.writerows(_harmless(row) for row in chunk)
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
    yield buffer.getvalue().encode()


def _harmless(row: Row) -> list[object]:
    """Keep a spreadsheet from reading a text as a formula."""
    return [
        f"'{cell}"
        if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r"))
        else cell
        for cell in row
    ]


def as_parquet(export: Export) -> Iterator[bytes]:
    """Return the bytes of a Parquet file, built on disk first. Raises `ParquetNotInstalled`."""
    arrow, parquet = _pyarrow()
    schema = arrow.schema(
        [
            ("series_id", arrow.int64()),
            *((name, arrow.string()) for name in COLUMNS[1:5]),
            ("ts", arrow.timestamp("ns", tz="UTC")),
            ("value", arrow.float64()),
            ("document", arrow.string()),
        ]
    )
    file = tempfile.TemporaryFile()  # noqa: SIM115 - closed when the last piece was sent
    try:
        with parquet.ParquetWriter(file, schema) as writer:
            for chunk in export.chunks():
                columns = [list(column) for column in zip(*chunk, strict=True)]
                arrays = [
                    arrow.array(column, type=field.type)
                    for column, field in zip(columns, schema, strict=True)
                ]
                writer.write_table(arrow.Table.from_arrays(arrays, schema=schema))
    except BaseException:
        file.close()
        raise
    return _pieces(file)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise ParquetNotInstalled("this platform writes no Parquet") from error
    return pa, parquet


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    with file:
        file.seek(0)
        while piece := file.read(PIECE):
            yield piece
