"""Series, batches and the reading of samples of one tenant: all SQL of this feature but the inserts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Protocol

import msgspec
from sqlalchemy import ColumnElement, Select, exists, func, insert, select, type_coerce, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DataError
from sqlalchemy.orm import Session

from tensorguard.errors import InputError, NotFound
from tensorguard.platform.db.tables.telemetry import (
    DocumentRow,
    IngestBatch,
    Latest,
    SampleRow,
    Series,
    Submission,
)
from tensorguard.platform.telemetry.cache import Identity
from tensorguard.platform.telemetry.points import DEVICE_LABEL, DOCUMENT_KINDS, Letter
from tensorguard.wire.telemetry import Answer, Rejection

CHUNK = 500  # keys in one statement; SQLite takes 32,766 parameters


class BatchKeyReused(InputError):
    code = "idempotency_key_reused"
    status = 422
    remedy = "Use a fresh key for each new batch, and send a retry with the same bytes."


class AggregateOverflow(InputError):
    code = "aggregate_overflow"
    status = 422
    remedy = "Ask for min, max, last or count, or for a shorter time."


class NotNumbers(InputError):
    code = "not_numbers"
    status = 422
    remedy = "Ask for the samples themselves, without agg."


class Aggregation(StrEnum):
    """What becomes of the samples of one step."""

    minimum = "min"
    maximum = "max"
    mean = "mean"
    last = "last"
    samples = "count"
    median = "p50"
    slowest = "p99"


PERCENT = {Aggregation.median: 50, Aggregation.slowest: 99}


@dataclass(frozen=True, slots=True)
class Matchers:
    """Which series are meant: all that is given must match."""

    name: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Span:
    """From `start` on, up to and without `end`; nanoseconds since 1970."""

    start: int
    end: int


Point = tuple[int, float | msgspec.Raw]


class SeriesFacts(msgspec.Struct, frozen=True):
    """A series as readers see it."""

    id: int
    name: str
    unit: str
    kind: str
    labels: dict[str, str]
    device_id: str | None
    created: datetime


class Newest(msgspec.Struct, frozen=True):
    """A series and its newest sample; `ts` is nanoseconds since 1970."""

    series: SeriesFacts
    ts: int
    value: float | msgspec.Raw


class SentBy(Protocol):
    """Whose batch it was."""

    @property
    def device_id(self) -> str | None:
        """The device, if the credential is bound to one."""

    @property
    def actor(self) -> str:
        """The principal."""


class BatchRepository:
    """Batches of one tenant: the same one is stored once."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def answer_of(self, *, principal: str, key: bytes, body: bytes) -> Answer:
        """Return the answer that a stored batch got.

        Raises `BatchKeyReused` when the key came with another body.
        """
        stored = self._session.get_one(IngestBatch, (self._tenant_id, principal, key))
        self.same_body(stored.body, body)
        rejections = msgspec.json.decode(stored.rejections, type=list[Rejection])
        return Answer(stored.accepted, stored.duplicates, rejections, stored.rejected)

    @staticmethod
    def same_body(stored: bytes, sent: bytes) -> None:
        """Raise `BatchKeyReused` when two batches of one key differ."""
        if stored != sent:
            raise BatchKeyReused("this key was used for another batch")

    def settle(self, *, principal: str, key: bytes, answer: Answer) -> None:
        """Keep the answer of a batch that was claimed."""
        self._session.execute(
            update(IngestBatch)
            .where(
                IngestBatch.tenant_id == self._tenant_id,
                IngestBatch.principal == principal,
                IngestBatch.key == key,
            )
            .values(
                accepted=answer.accepted,
                duplicates=answer.duplicates,
                rejected=answer.rejected_total,
                rejections=msgspec.json.encode(answer.rejected).decode(),
            )
            .execution_options(synchronize_session=False)
        )

    def add(
        self, *, principal: str, key: bytes, body: bytes, answer: Answer, now: datetime
    ) -> None:
        """Note a batch with its answer."""
        self._session.add(
            IngestBatch(
                tenant_id=self._tenant_id,
                principal=principal,
                key=key,
                body=body,
                received=now,
                accepted=answer.accepted,
                duplicates=answer.duplicates,
                rejected=answer.rejected_total,
                rejections=msgspec.json.encode(answer.rejected).decode(),
            )
        )

    def keep(self, sender: SentBy, media: str, letters: Sequence[Letter], *, now: datetime) -> None:
        """Keep what was refused for good."""
        rows = [
            {
                "tenant_id": self._tenant_id,
                "device_id": sender.device_id,
                "principal": sender.actor,
                "media": media,
                "received": now,
                "reason": letter.reason,
                "payload": letter.payload,
            }
            for letter in letters
        ]
        self._session.execute(insert(Submission), rows)


class SeriesRepository:
    """Series of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def resolve(self, identities: Sequence[Identity], *, now: datetime) -> dict[bytes, int]:
        """Return the ids of all `identities` by their keys; series that are new are made."""
        by_key = {identity.key: identity for identity in identities}
        found = self._ids(by_key)
        missing = sorted(by_key.keys() - found.keys())  # one order for all: no deadlock
        if missing:
            self._create([(key, by_key[key]) for key in missing], now)
            found |= self._ids(missing)
        return found

    def _ids(self, keys: Mapping[bytes, Identity] | Sequence[bytes]) -> dict[bytes, int]:
        wanted, found = list(keys), dict[bytes, int]()
        for begin in range(0, len(wanted), CHUNK):
            query = select(Series.key, Series.id).where(
                Series.tenant_id == self._tenant_id, Series.key.in_(wanted[begin : begin + CHUNK])
            )
            found.update((bytes(key), series_id) for key, series_id in self._session.execute(query))
        return found

    def _create(self, series: Sequence[tuple[bytes, Identity]], now: datetime) -> None:
        maker = postgresql.insert if self._on_postgresql else sqlite.insert
        statement, connection = maker(Series).on_conflict_do_nothing(), self._session.connection()
        for begin in range(0, len(series), CHUNK):
            rows = [
                {
                    "tenant_id": self._tenant_id,
                    "device_id": labels.get(DEVICE_LABEL),
                    "name": identity.name,
                    "unit": identity.unit,
                    "kind": str(identity.kind),
                    "labels": labels,
                    "key": key,
                    "created": now,
                }
                for key, identity in series[begin : begin + CHUNK]
                for labels in [msgspec.json.decode(identity.labels, type=dict[str, str])]
            ]
            connection.execute(statement, rows)

    @property
    def _on_postgresql(self) -> bool:
        return self._session.get_bind().dialect.name == "postgresql"

    def get(self, series_id: int) -> Series:
        """Return one series. Raises `NotFound`."""
        query = select(Series).where(Series.tenant_id == self._tenant_id, Series.id == series_id)
        found = self._session.scalar(query)
        if found is None:
            raise NotFound(f"there is no series {series_id}")
        return found

    def page(self, matchers: Matchers, *, after: int, limit: int) -> list[Series]:
        """Return up to `limit` matching series with an id above `after`, in order."""
        query = select(Series).where(*self._matching(matchers, after))
        return list(self._session.scalars(query.order_by(Series.id).limit(limit)))

    def latest(self, matchers: Matchers, *, after: int, limit: int) -> list[Newest]:
        """Return up to `limit` matching series with their newest sample."""
        query = (
            select(
                Series.id,
                Series.name,
                Series.unit,
                Series.kind,
                Series.labels,
                Series.device_id,
                Series.created,
                Latest.ts,
                Latest.value,
            )
            .outerjoin(Latest, Latest.series_id == Series.id)
            .where(*self._matching(matchers, after))
            .where(
                Latest.ts.is_not(None)
                | Series.kind.in_(DOCUMENT_KINDS)
                & exists().where(DocumentRow.series_id == Series.id)
            )
            .order_by(Series.id)
            .limit(limit)
        )
        found = []
        for row in self._session.execute(query):
            ts, value = row.ts, row.value
            if ts is None:
                ts, value = self._newest_document(row.id)
            if ts is not None:
                series = SeriesFacts(*row[:7])
                found.append(Newest(series, ts, value))
        return found

    def _newest_document(self, series_id: int) -> tuple[int, msgspec.Raw] | tuple[None, None]:
        query = (
            select(DocumentRow.ts, DocumentRow.value)
            .where(DocumentRow.series_id == series_id)
            .order_by(DocumentRow.ts.desc())
            .limit(1)
        )
        row = self._session.execute(query).first()
        return (None, None) if row is None else (row.ts, msgspec.Raw(row.value.encode()))

    def _matching(self, matchers: Matchers, after: int) -> list[ColumnElement[bool]]:
        conditions = [Series.tenant_id == self._tenant_id, Series.id > after]
        if matchers.name is not None:
            conditions.append(Series.name == matchers.name)
        if matchers.labels and self._on_postgresql:
            labels = type_coerce(Series.labels, JSONB)
            conditions.append(labels.contains(dict(matchers.labels)))
        elif matchers.labels:
            for key, value in matchers.labels.items():
                pair = func.json_each(Series.labels).table_valued("key", "value")
                conditions.append(exists().where(pair.c.key == key, pair.c.value == value))
        return conditions


class SampleRepository:
    """Samples of series that the caller has already found to be its own tenant's."""

    def __init__(self, session: Session, *, series: Series | SeriesFacts) -> None:
        self._session = session
        self._series_id = series.id
        self._document = series.kind in DOCUMENT_KINDS

    def size(self, span: Span) -> int:
        """Return how many samples there are."""
        table = DocumentRow if self._document else SampleRow
        query = select(func.count()).where(
            table.series_id == self._series_id, table.ts >= span.start, table.ts < span.end
        )
        return self._session.scalar(query) or 0

    def raw(self, span: Span, *, limit: int) -> list[Point]:
        """Return up to `limit` samples in order of time."""
        if self._document:
            found = self._documents(span, limit)
            return [(ts, msgspec.Raw(value.encode())) for ts, value in found]
        query = (
            select(SampleRow.ts, SampleRow.value)
            .where(*self._within(span))
            .order_by(SampleRow.ts)
            .limit(limit)
        )
        return [(ts, value) for ts, value in self._session.execute(query)]

    def _documents(self, span: Span, limit: int) -> list[tuple[int, str]]:
        query = (
            select(DocumentRow.ts, DocumentRow.value)
            .where(
                DocumentRow.series_id == self._series_id,
                DocumentRow.ts >= span.start,
                DocumentRow.ts < span.end,
            )
            .order_by(DocumentRow.ts)
            .limit(limit)
        )
        return [(ts, value) for ts, value in self._session.execute(query)]

    def aggregate(self, span: Span, *, step: int, by: Aggregation) -> list[Point]:
        """Return (start of the step, aggregate) for each step that has a sample.

        Raises `NotNumbers` for a series of texts and the like, and `AggregateOverflow` when a mean
        leaves the range of a double.
        """
        if self._document:
            raise NotNumbers("an aggregate needs numbers, and this series has none")
        number = ((SampleRow.ts - span.start) // step).label("number")
        grouped = select(number).where(*self._within(span)).group_by(number).order_by(number)
        if by in PERCENT:
            query = self._percentile(span, step, PERCENT[by])
        else:
            query = self._last(grouped) if by is Aggregation.last else _aggregated(grouped, by)
        try:
            rows = [(number, value) for number, value in self._session.execute(query)]
        except DataError as error:
            raise AggregateOverflow("the sum of these values is too large") from error
        if not all(math.isfinite(value) for _, value in rows):
            raise AggregateOverflow("the sum of these values is too large")
        return [(span.start + step_number * step, value) for step_number, value in rows]

    def _last(self, grouped: Select[int]) -> Select[int, float]:
        ends = grouped.add_columns(func.max(SampleRow.ts).label("end")).order_by(None).subquery()
        return (
            select(ends.c.number, SampleRow.value)
            .join(SampleRow, SampleRow.ts == ends.c.end)
            .where(SampleRow.series_id == self._series_id)
            .order_by(ends.c.number)
        )

    def _percentile(self, span: Span, step: int, percent: int) -> Select[int, float]:
        """Select the smallest value that at least `percent` in 100 do not exceed (nearest rank)."""
        number = ((SampleRow.ts - span.start) // step).label("number")
        ranked = (
            select(
                number,
                SampleRow.value.label("value"),
                func.row_number().over(partition_by=number, order_by=SampleRow.value).label("rank"),
                func.count().over(partition_by=number).label("size"),
            )
            .where(*self._within(span))
            .subquery()
        )
        wanted = (ranked.c.size * percent + 99) // 100
        return (
            select(ranked.c.number, ranked.c.value)
            .where(ranked.c.rank == wanted)
            .order_by(ranked.c.number)
        )

    def _within(self, span: Span) -> tuple[ColumnElement[bool], ...]:
        return (
            SampleRow.series_id == self._series_id,
            SampleRow.ts >= span.start,
            SampleRow.ts < span.end,
        )


def _aggregated(grouped: Select[int], by: Aggregation) -> Select[int, float]:
    value = SampleRow.value
    match by:
        case Aggregation.minimum:
            return grouped.add_columns(func.min(value))
        case Aggregation.maximum:
            return grouped.add_columns(func.max(value))
        case Aggregation.mean:  # avg() on PostgreSQL also sums squares, which overflow sooner
            return grouped.add_columns(func.sum(value) / func.count())
        case _:
            return grouped.add_columns(func.count())
