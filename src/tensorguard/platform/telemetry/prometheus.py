"""What Grafana asks of Prometheus: selectors at one time or over a range, labels, series.

At each step a series has the value of its newest sample that is at most five minutes old, as in
Prometheus. All series are of the caller's tenant. Unit and kind, where they say anything, are the
labels `__unit__` and `__kind__`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import Final

from sqlalchemy import ColumnElement, func, literal, select, type_coerce
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session
from sqlalchemy.sql.selectable import TableValuedAlias

from tensorguard.errors import InputError
from tensorguard.platform.db.tables.telemetry import SampleRow, Series
from tensorguard.platform.telemetry.points import DOCUMENT_KINDS, Kind
from tensorguard.platform.telemetry.promql import NAME_LABEL, How, Matcher, Selector
from tensorguard.platform.telemetry.service import MAX_QUERY_SERIES, QueryTooLarge
from tensorguard.wire.telemetry import NANOSECONDS, BadTime, nanoseconds, parse_time

LOOKBACK: Final = 300 * NANOSECONDS
MAX_LISTED: Final = 10_000  # names, values or series
UNIT_LABEL, KIND_LABEL = "__unit__", "__kind__"
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?(?:(\d+)ms)?", re.ASCII)
_UNITS: Final = (86_400 * 10**9, 3600 * 10**9, 60 * 10**9, 10**9, 10**6)

Values = list[tuple[int, float]]  # nanoseconds, value


class BadParameter(InputError):
    code = "bad_query"
    remedy = "Send the parameters of Prometheus' HTTP API: query, time, start, end, step, match[]."


def moment(text: str | None, default: datetime | None) -> int:
    """Return nanoseconds of Unix seconds or RFC 3339 text. Raises `BadParameter`."""
    if text is None:
        if default is None:
            raise BadParameter("start and end are needed")
        return nanoseconds(default)
    try:
        return parse_time(int(Decimal(text) * NANOSECONDS))
    except (InvalidOperation, ValueError, OverflowError):
        try:
            return parse_time(text)
        except BadTime as error:
            raise BadParameter(f"{text[:40]!r} is not a time") from error
    except BadTime as error:
        raise BadParameter(f"{text[:40]!r} is not a time") from error


def duration(text: str | None) -> int:
    """Return nanoseconds of seconds or `1h30m`. Raises `BadParameter`."""
    if text is None:
        raise BadParameter("step is needed")
    try:
        found = int(Decimal(text) * NANOSECONDS)
    except (InvalidOperation, ValueError, OverflowError):
        match = _DURATION.fullmatch(text)
        parts = match.groups() if match and text else ()
        found = sum(int(n) * unit for n, unit in zip(parts, _UNITS, strict=False) if n)
    if not 0 < found < 1 << 62:
        raise BadParameter(f"{text[:40]!r} is not a duration above zero")
    return found


@dataclass(frozen=True, slots=True)
class Found:
    """One series, as Prometheus names it."""

    id: int
    metric: Mapping[str, str]


class PrometheusReader:
    """Reads the series of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._postgresql = session.get_bind().dialect.name == "postgresql"

    def find(self, selector: Selector, *, limit: int) -> list[Found]:
        """Return up to `limit` numeric series that match."""
        query = (
            select(Series.id, Series.name, Series.unit, Series.kind, Series.labels)
            .where(*self._mine(selector), Series.kind.not_in(DOCUMENT_KINDS))
            .order_by(Series.id)
            .limit(limit)
        )
        return [
            Found(row.id, _metric(row.name, row.unit, row.kind, row.labels))
            for row in self._session.execute(query)
        ]

    def label_names(self, selector: Selector) -> list[str]:
        """Return the names of the labels that matching series have."""
        pair = self._pairs()
        names = select(pair.c.key).select_from(Series).join(pair, literal(value=True))
        query = names.where(*self._mine(selector)).distinct().limit(MAX_LISTED)
        return sorted({NAME_LABEL, *self._session.scalars(query)})

    def label_values(self, label: str, selector: Selector) -> list[str]:
        """Return the values that a label has among matching series."""
        column = self._label(label)
        query = select(column).where(*self._mine(selector)).distinct().limit(MAX_LISTED)
        return sorted(value for value in self._session.scalars(query) if value)

    def steps(self, series_id: int, start: int, end: int, step: int) -> Values:
        """Return (time, value) at each step from `start` to `end` where there is one."""
        number = ((SampleRow.ts - start + (step - 1)) // step).label("number")
        first = start - LOOKBACK
        earlier = (
            select(func.max(SampleRow.ts))
            .where(SampleRow.series_id == series_id, SampleRow.ts > first, SampleRow.ts <= start)
            .scalar_subquery()
        )
        last = (
            select(func.max(SampleRow.ts).label("ts"))
            .where(SampleRow.series_id == series_id, SampleRow.ts > start, SampleRow.ts <= end)
            .group_by(number)
        )
        wanted = last.union_all(select(earlier)).subquery()
        query = (
            select(SampleRow.ts, SampleRow.value)
            .join(wanted, SampleRow.ts == wanted.c.ts)
            .where(SampleRow.series_id == series_id)
            .order_by(SampleRow.ts)
        )
        return _held([(ts, value) for ts, value in self._session.execute(query)], start, end, step)

    def _mine(self, selector: Selector) -> list[ColumnElement[bool]]:
        conditions = [Series.tenant_id == self._tenant_id]
        return conditions + [self._condition(matcher) for matcher in selector]

    def _condition(self, matcher: Matcher) -> ColumnElement[bool]:
        column = func.coalesce(self._label(matcher.label), "")
        match matcher.how:
            case How.equal if matcher.label == NAME_LABEL:
                return Series.name == matcher.value  # it has an index
            case How.equal:
                return column == matcher.value
            case How.different:
                return column != matcher.value
            case How.like:
                return column.regexp_match(f"^(?:{matcher.value})$")
            case _:
                return ~column.regexp_match(f"^(?:{matcher.value})$")

    def _label(self, label: str) -> ColumnElement[str]:
        special: dict[str, ColumnElement[str]] = {
            NAME_LABEL: type_coerce(Series.name, Series.name.type),
            UNIT_LABEL: type_coerce(Series.unit, Series.unit.type),
            KIND_LABEL: type_coerce(Series.kind, Series.kind.type),
        }
        if label in special:
            return special[label]
        if self._postgresql:
            value: ColumnElement[str] = type_coerce(Series.labels, JSONB)[label].astext
            return value
        if '"' in label or "\\" in label:
            raise BadParameter("a label's name with a quote cannot be asked for here")
        found: ColumnElement[str] = func.json_extract(Series.labels, f'$."{label}"')
        return found

    def _pairs(self) -> TableValuedAlias:
        if self._postgresql:
            return func.jsonb_each_text(Series.labels).table_valued("key", "value")
        return func.json_each(Series.labels).table_valued("key", "value")


def _metric(name: str, unit: str, kind: str, labels: Mapping[str, str]) -> dict[str, str]:
    metric = {NAME_LABEL: name, **labels}
    if unit:
        metric[UNIT_LABEL] = unit
    if kind != Kind.gauge:
        metric[KIND_LABEL] = kind
    return metric


def _held(samples: Sequence[tuple[int, float]], start: int, end: int, step: int) -> Values:
    found: Values = []
    place, newest = 0, None
    for time in range(start, end + 1, step):
        while place < len(samples) and samples[place][0] <= time:
            newest = samples[place]
            place += 1
        if newest is not None and time - newest[0] < LOOKBACK:
            found.append((time, newest[1]))
    return found


def over_range(
    reader: PrometheusReader,
    selector: Selector,
    *,
    start: int,
    end: int,
    step: int,
    max_points: int,
) -> list[tuple[Found, Values]]:
    """Return the matching series that have a value, with the values at each step.

    Raises `QueryTooLarge`.
    """
    steps = (end - start) // step + 1
    if end < start:
        raise BadParameter("end must not be before start")
    if steps > max_points:
        raise QueryTooLarge(f"a query may return at most {max_points} points of a series")
    series = reader.find(selector, limit=MAX_QUERY_SERIES + 1)
    if len(series) > MAX_QUERY_SERIES:
        raise QueryTooLarge(f"more than {MAX_QUERY_SERIES} series match")
    found = ((one, reader.steps(one.id, start, end, step)) for one in series)
    return [(one, values) for one, values in found if values]
