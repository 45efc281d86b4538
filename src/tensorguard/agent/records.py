"""A record is one sample, encoded once, with the priority that decides what is kept when room ends.

A line is a JSON object: `name` and `value`, and optionally `ts` (nanoseconds or RFC 3339; now when
absent), `labels`, `unit` and `priority` (`safety`, `events` or `metrics`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from tensorguard.errors import MalformedInput
from tensorguard.wire.telemetry import MAX_NAME, MAX_UNIT, BadTime, Sample, parse_time

MAX_LINE: Final = 64 * 1024  # bytes; the labels of a sample have at most 16 KiB together


class Priority(IntEnum):
    """What is sent first and dropped last. The smaller the number, the more it matters."""

    safety = 0
    events = 1
    metrics = 2


class BadSample(MalformedInput):
    code = "bad_sample"
    remedy = (
        'Write one JSON object a line: {"name", "value", "ts"?, "labels"?, "unit"?, "priority"?}.'
    )


@dataclass(frozen=True, slots=True)
class Record:
    """One sample as the JSON that will be sent."""

    priority: Priority
    body: bytes


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=MAX_NAME)]
    value: float | bool | str
    ts: int | str | None = None
    labels: dict[str, str] = {}
    unit: Annotated[str, Meta(max_length=MAX_UNIT)] = ""
    priority: Literal["safety", "events", "metrics"] = "metrics"


_LINE: Final = msgspec.json.Decoder(_Line)
_ENCODER: Final = msgspec.json.Encoder()


def record(
    name: str,
    value: float | bool | str,  # noqa: FBT001 -- the sample's value
    *,
    ts: int,
    labels: Mapping[str, str] | None = None,
    unit: str = "",
    priority: Priority = Priority.metrics,
) -> Record:
    """Return the record of one sample at `ts` nanoseconds since 1970. Raises `BadSample`."""
    if isinstance(value, float) and not math.isfinite(value):
        raise BadSample(f"the value of {name[:80]} is not a finite number")
    body = _ENCODER.encode(Sample(name, value, ts, dict(labels or {}), unit))
    if len(body) > MAX_LINE:
        raise BadSample(f"the sample has over {MAX_LINE} bytes")
    return Record(priority, body)


def parse_line(line: bytes, *, now_ns: int) -> Record:
    """Return the record of one JSON line. Raises `BadSample`."""
    if len(line) > MAX_LINE:
        raise BadSample(f"the line has over {MAX_LINE} bytes")
    try:
        read = _LINE.decode(line)
        ts = now_ns if read.ts is None else parse_time(read.ts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, BadTime) as error:
        raise BadSample(f"the line is not a sample: {str(error)[:200]}") from error
    return record(
        read.name,
        read.value,
        ts=ts,
        labels=read.labels,
        unit=read.unit,
        priority=Priority[read.priority],
    )
