"""Our JSON: decoded in one go when every sample is well-formed, else sample by sample."""

from __future__ import annotations

import msgspec

from tensorguard.errors import MalformedInput
from tensorguard.platform.telemetry.points import Kind, Points
from tensorguard.wire.telemetry import BadTime, Batch, Sample, parse_time

MAX_REASON = 200  # characters; it may quote what was sent


class BatchUnreadable(MalformedInput):
    code = "batch_unreadable"
    remedy = 'Send {"samples": [{"name", "value", "ts", "labels"?, "unit"?}], "batch_id"?} as JSON.'


class _Envelope(msgspec.Struct, forbid_unknown_fields=True):
    samples: list[msgspec.Raw]
    batch_id: str | None = None


_BATCH = msgspec.json.Decoder(Batch)
_ENVELOPE = msgspec.json.Decoder(_Envelope)
_SAMPLE = msgspec.json.Decoder(Sample)


def decode(body: bytes, points: Points) -> str | None:
    """Put the samples of `body` into `points`; return its batch id. Raises `BatchUnreadable`."""
    try:
        batch = _BATCH.decode(body)
    except msgspec.ValidationError:
        return _each(body, points)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BatchUnreadable("the body is not JSON in UTF-8") from error
    _begin(len(batch.samples), points)
    for sample in batch.samples:
        _add(sample, points)
    return batch.batch_id


def _each(body: bytes, points: Points) -> str | None:
    try:
        envelope = _ENVELOPE.decode(body)
    except msgspec.ValidationError as error:
        raise BatchUnreadable(f"the body is not a batch: {error}") from error
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise BatchUnreadable("the body is not JSON in UTF-8") from error
    _begin(len(envelope.samples), points)
    for raw in envelope.samples:
        try:
            sample = _SAMPLE.decode(raw)
        except msgspec.ValidationError as error:
            points.reject(f"it is not a sample: {error}"[:MAX_REASON])
        except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            raise BatchUnreadable("the body is not JSON in UTF-8") from error
        else:
            _add(sample, points)
    return envelope.batch_id


def _begin(count: int, points: Points) -> None:
    if count == 0:
        raise BatchUnreadable("the batch holds no sample")
    points.expect(count)


def _add(sample: Sample, points: Points) -> None:
    try:
        time = parse_time(sample.ts)
    except BadTime as error:
        points.reject(str(error))
        return
    slot = points.slot(sample.name, sample.unit, Kind.gauge, sample.labels)
    points.add(slot, time, sample.value)
