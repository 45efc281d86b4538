"""What a reader asks for: `name=`, `label.x=`, times and steps; an unknown parameter is refused."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from tensorguard.errors import InputError
from tensorguard.platform.telemetry.points import FUTURE
from tensorguard.platform.telemetry.repository import Aggregation, Matchers, Span
from tensorguard.wire.telemetry import (
    MAX_LABEL_KEY,
    MAX_LABEL_VALUE,
    MAX_NAME,
    NANOSECONDS,
    nanoseconds,
    parse_time,
)

LABEL_PREFIX: Final = "label."
MAX_MATCHERS: Final = 16
DEFAULT_SPAN: Final = timedelta(hours=1)
PAGE_PARAMETERS: Final = frozenset({"cursor", "limit"})
QUERY_PARAMETERS: Final = frozenset({"series_id", "start", "end", "step", "agg"})
EXPORT_PARAMETERS: Final = frozenset({"series_id", "start", "end", "format"})

_UNITS = {
    "ns": 1,
    "us": 10**3,
    "ms": 10**6,
    "s": NANOSECONDS,
    "m": 60 * NANOSECONDS,
    "h": 3600 * NANOSECONDS,
    "d": 86_400 * NANOSECONDS,
}
_STEP = re.compile(r"([1-9]\d{0,18})(ns|us|ms|s|m|h|d)?", re.ASCII)
_SERIES_ID = re.compile(r"[1-9]\d{0,17}", re.ASCII)

Parameters = Iterable[tuple[str, str]]


class BadQuery(InputError):
    code = "bad_query"
    remedy = "Use the parameters that docs/formats/telemetry.md lists for this path."


@dataclass(frozen=True, slots=True)
class RangeQuery:
    """A checked query. Without `by` the samples themselves are meant; `step` is in nanoseconds."""

    wanted: Matchers | int
    span: Span
    step: int | None
    by: Aggregation | None


def matchers(parameters: Parameters, *, beside: frozenset[str]) -> Matchers:
    """Return the matchers among `parameters`. Raises `BadQuery` for anything not named in `beside`."""
    name: str | None = None
    labels: dict[str, str] = {}
    seen: set[str] = set()
    for key, value in parameters:
        if key in seen:
            raise BadQuery(f"{_shown(key)} is given twice")
        seen.add(key)
        if "\0" in key or "\0" in value:
            raise BadQuery("a parameter holds a NUL character")
        if key == "name":
            if not 0 < len(value) <= MAX_NAME:
                raise BadQuery(f"name must have 1 to {MAX_NAME} characters")
            name = value
        elif key.startswith(LABEL_PREFIX):
            labels[_label(key)] = value
            if len(value) > MAX_LABEL_VALUE or len(labels) > MAX_MATCHERS:
                raise BadQuery(f"a query takes up to {MAX_MATCHERS} labels, each value bounded")
        elif key not in beside:
            raise BadQuery(f"{_shown(key)} is not a parameter of this path")
    return Matchers(name, labels)


def range_query(
    parameters: Parameters, *, now: datetime, known: frozenset[str] = QUERY_PARAMETERS
) -> RangeQuery:
    """Return the checked query. Raises `BadQuery` or `BadTime`."""
    given = list(parameters)
    matched = matchers(given, beside=known)
    values = dict(given)
    series_id = values.get("series_id")
    if (series_id is None) == (matched.name is None and not matched.labels):
        raise BadQuery("a query takes either series_id or name and labels")
    wanted = matched if series_id is None else _series_id(series_id)
    by, step = _aggregation(values.get("agg")), _step(values.get("step"))
    if step is not None and by is None:
        raise BadQuery("a step needs an aggregation: agg=min, max, mean, last, count, p50 or p99")
    return RangeQuery(wanted, _span(values.get("start"), values.get("end"), now), step, by)


def _shown(key: str) -> str:
    return repr(key[:64])


def _label(key: str) -> str:
    label = key.removeprefix(LABEL_PREFIX)
    if not 0 < len(label) <= MAX_LABEL_KEY:
        raise BadQuery(f"a label's name must have 1 to {MAX_LABEL_KEY} characters")
    return label


def _series_id(text: str) -> int:
    if not _SERIES_ID.fullmatch(text):
        raise BadQuery("series_id must be a whole number")
    return int(text)


def _aggregation(text: str | None) -> Aggregation | None:
    if text is None:
        return None
    try:
        return Aggregation(text)
    except ValueError:
        raise BadQuery(f"agg must be one of: {', '.join(Aggregation)}") from None


def _step(text: str | None) -> int | None:
    if text is None:
        return None
    match = _STEP.fullmatch(text)
    if match is None:
        raise BadQuery("step must be a whole number of ns, or one with us, ms, s, m, h or d")
    step = int(match[1]) * _UNITS[match[2] or "ns"]
    return min(step, parse_time(2**63 - 1))


def _span(start: str | None, end: str | None, now: datetime) -> Span:
    stop = nanoseconds(now) + FUTURE if end is None else parse_time(end)
    default = stop - int(DEFAULT_SPAN.total_seconds()) * NANOSECONDS
    begin = default if start is None else parse_time(start)
    begin = max(begin, 0)  # nothing is older than 1970
    if stop <= begin:
        raise BadQuery("end must be after start")
    return Span(begin, stop)
