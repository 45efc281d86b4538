"""Our JSON: decoded in one go when every sample is a good number, else sample by sample."""

from __future__ import annotations

from functools import partial

import msgspec
import numpy as np

from tensorguard.errors import MalformedInput
from tensorguard.platform.telemetry.points import Kind, NotPlain, Points
from tensorguard.wire.telemetry import MAX_TEXT, BadTime, Sample, parse_time

MAX_REASON = 200  # characters; it may quote what was sent


class BatchUnreadable(MalformedInput):
    code = "batch_unreadable"
    remedy = 'Send {"samples": [{"name", "value", "ts", "labels"?, "unit"?}], "batch_id"?} as JSON.'


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    samples: list[msgspec.Raw]
    batch_id: str | None = None


class _Row(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """A sample whose labels are not looked at, because the very same were seen before."""

    name: str
    value: float
    ts: int
    labels: msgspec.Raw = msgspec.Raw(b"{}")
    unit: str = ""


class _Rows(msgspec.Struct, forbid_unknown_fields=True):
    samples: list[_Row]
    batch_id: str | None = None


_ROWS = msgspec.json.Decoder(_Rows)
_LABELS = msgspec.json.Decoder(dict[str, str])
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_SAMPLE = msgspec.json.Decoder(Sample)


def decode(body: bytes, points: Points) -> str | None:
    """Put all samples into `points`, or none; return the batch id. Raises `NotPlain`."""
    try:
        batch = _ROWS.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise NotPlain from error
    rows = batch.samples
    if not rows:
        raise NotPlain
    points.expect(len(rows))
    rules = points.rules
    context = points.known.context(("json", rules.tenant_id, rules.device_id))
    seen: dict[tuple[str, str, bytes], int] = {}
    series = list[int]()
    for row in rows:
        key = (row.name, row.unit, bytes(row.labels))
        found = seen.get(key)
        if found is None:
            found = points.find((context, key))
            if found is None:
                found = points.learn(
                    (context, key), row.name, row.unit, Kind.gauge, _labels(row.labels)
                )
            seen[key] = found
        series.append(found)
    try:
        times = np.array([row.ts for row in rows], dtype=np.int64)
    except OverflowError as error:
        raise NotPlain from error
    values = np.array([row.value for row in rows], dtype=np.float64)
    points.take(np.array(series, dtype=np.int64), times, values)
    return batch.batch_id


def _labels(raw: msgspec.Raw) -> dict[str, str]:
    try:
        return _LABELS.decode(raw)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise NotPlain from error


def collect(body: bytes, points: Points) -> str | None:
    """Put the samples into `points` one by one; return the batch id. Raises `BatchUnreadable`."""
    try:
        envelope = _ENVELOPE.decode(body)
    except msgspec.ValidationError as error:
        raise BatchUnreadable(f"the body is not a batch: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BatchUnreadable("the body is not JSON in UTF-8") from error
    if not envelope.samples:
        raise BatchUnreadable("the batch holds no sample")
    points.expect(len(envelope.samples))
    for raw in envelope.samples:
        letter = partial(_letter, raw)
        try:
            sample = _SAMPLE.decode(raw)
        except msgspec.ValidationError as error:
            points.reject(f"it is not a sample: {error}"[:MAX_REASON], letter)
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BatchUnreadable("the body is not JSON in UTF-8") from error
        else:
            _add(sample, letter, points)
    return envelope.batch_id


def _letter(raw: msgspec.Raw) -> bytes:
    return b'{"samples":[%b]}' % bytes(raw)


def _add(sample: Sample, letter: partial[bytes], points: Points) -> None:
    try:
        time = parse_time(sample.ts)
    except BadTime as error:
        points.reject(str(error), letter)
        return
    match sample.value:
        case bool():
            slot = points.slot(sample.name, sample.unit, Kind.flag, sample.labels)
            points.add_document(slot, time, "true" if sample.value else "false", letter)
        case str():
            if len(sample.value) > MAX_TEXT:
                points.reject(f"the value is longer than {MAX_TEXT} characters", letter)
                return
            if "\0" in sample.value:
                points.reject("the value holds a NUL character", letter)
                return
            slot = points.slot(sample.name, sample.unit, Kind.text, sample.labels)
            points.add_document(slot, time, msgspec.json.encode(sample.value).decode(), letter)
        case _:
            slot = points.slot(sample.name, sample.unit, Kind.gauge, sample.labels)
            points.add(slot, time, sample.value, letter)
