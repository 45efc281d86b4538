"""Telemetry between a device and the platform: JSON messages, times and the limits on both sides.

A time is a whole number of nanoseconds since 1970-01-01T00:00:00Z, or RFC 3339 text with a zone and
up to nine digits of a second. Specified in docs/formats/telemetry.md.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec

from tensorguard.errors import MalformedInput

INGEST_PATH: Final = "/api/v1/telemetry/ingest"
OTLP_PATH: Final = "/v1/metrics"
IDEMPOTENCY_HEADER: Final = "idempotency-key"
RETRYABLE: Final = frozenset({429, 502, 503, 504})  # OTLP/HTTP: these and no others

MAX_NAME = 255  # characters; OpenTelemetry's own limit for a metric name
MAX_UNIT = 63  # characters; OpenTelemetry's own limit for a unit
MAX_LABEL_KEY = 128
MAX_LABEL_VALUE = 1024
MAX_TEXT = 4096  # characters of a value that is text
MAX_BATCH_KEY = 255
MAX_LISTED = 1000  # rejections that one answer lists; it counts all of them

NANOSECONDS = 1_000_000_000
MIN_TIME = -(2**63)
MAX_TIME = 2**63 - 1  # 2262-04-11

_RFC3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", re.ASCII
)
_NUMBER = re.compile(r"-?\d{1,19}", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class BadTime(MalformedInput):
    code = "bad_time"
    remedy = "Write nanoseconds since 1970 as a whole number, or RFC 3339 text with a zone."


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, gc=False):
    """One value of one series at one time: a number, a truth or a text."""

    name: str
    value: float | bool | str
    ts: int | str
    labels: dict[str, str] = msgspec.field(default_factory=dict)
    unit: str = ""


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What one request carries; sent again with the same key, it is stored once."""

    samples: Sequence[Sample]
    batch_id: str | None = None


class Rejection(msgspec.Struct, frozen=True):
    """Why the sample at `index` of the request was not stored."""

    index: int
    reason: str


class Answer(msgspec.Struct, frozen=True):
    """What became of a batch, told after it was committed.

    `accepted + duplicates + rejected_total` is the number of samples sent. `rejected` lists the
    first `MAX_LISTED` rejections.
    """

    accepted: int
    duplicates: int
    rejected: Sequence[Rejection] = ()
    rejected_total: int = 0


def nanoseconds(moment: datetime) -> int:
    """Return the whole nanoseconds between 1970 and an aware `moment`, exactly."""
    delta = moment - _EPOCH
    return (delta.days * 86_400 + delta.seconds) * NANOSECONDS + delta.microseconds * 1000


def parse_time(value: int | str) -> int:
    """Return nanoseconds since 1970. Raises `BadTime`."""
    if isinstance(value, str):
        value = _from_text(value)
    if not MIN_TIME <= value <= MAX_TIME:
        raise BadTime("the time does not fit in 64 bits of nanoseconds")
    return value


def _from_text(text: str) -> int:
    if _NUMBER.fullmatch(text):
        return int(text)
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise BadTime("the time is neither nanoseconds nor RFC 3339 text with a zone")
    day, clock, fraction, zone = match.groups()
    zone = "+00:00" if zone in "Zz" else zone
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}{zone}")
    except ValueError as error:
        raise BadTime("there is no such time") from error
    return nanoseconds(moment) + int((fraction or "").ljust(9, "0"))
