"""Prometheus remote-write 1.0 (prometheus.WriteRequest in a snappy block): samples of gauges.

    WriteRequest { repeated TimeSeries timeseries = 1; repeated MetricMetadata metadata = 3; }
    TimeSeries   { repeated Label labels = 1; repeated Sample samples = 2;
                   repeated Exemplar exemplars = 3; repeated Histogram histograms = 4; }
    Label        { string name = 1; string value = 2; }
    Sample       { double value = 1; int64 timestamp = 2; }  milliseconds

Metadata and exemplars are passed over, native histograms are refused by name. A staleness mark is
no sample: it is passed over. The label `device` of a target is kept as `exported_device`, as
Prometheus itself does with labels that it owns.
"""

# ruff: noqa: PLR2004 - tags and field numbers are the wire format's own

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import numpy as np

from tensorguard.errors import MalformedInput
from tensorguard.platform.telemetry.cache import RawKey
from tensorguard.platform.telemetry.points import (
    DEVICE_LABEL,
    Floats,
    Integers,
    Kind,
    NotPlain,
    Points,
    Rules,
)
from tensorguard.wire.telemetry import MAX_TIME, MIN_TIME

STALE: Final = 0x7FF0000000000002  # prometheus/model/value: StaleNaN
MILLISECOND: Final = 1_000_000
NATIVE_HISTOGRAM: Final = "native histograms are not taken; send classic ones"
NO_NAME: Final = "its labels have no __name__"
TWICE: Final = "a label is given twice"
SERIES_TAG, METADATA_TAG, LABEL_TAG, SAMPLE_TAG, VALUE_TAG, TIME_TAG = (
    0x0A,
    0x1A,
    0x0A,
    0x12,
    0x09,
    0x10,
)
TIME_BYTES: Final = 6  # of milliseconds between 1971 and 2109
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5
VARINT_BYTES: Final = 10


class WriteUnreadable(MalformedInput):
    code = "remote_write_unreadable"
    remedy = "Send a prometheus.WriteRequest of remote-write 1.0 as one snappy block."


Field = tuple[int, int, int, int]  # number, wire type, begin, end


@dataclass(slots=True)
class _Columns:
    series: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)  # where each time begins
    values: list[int] = field(default_factory=list)  # where each value begins
    zeros: list[int] = field(default_factory=list)  # rows without a value, which is 0 then


def decode(body: bytes, points: Points) -> None:
    """Put all samples into `points`, by columns, or none. Raises `NotPlain`."""
    columns = _Columns()
    rules = points.rules
    context = points.known.context(("remote-write", rules.tenant_id, rules.device_id))
    at, end = 0, len(body)
    try:
        while at < end:
            tag = body[at]
            size, at = _length(body, at + 1)
            stop = at + size
            if stop > end or tag not in {SERIES_TAG, METADATA_TAG}:
                raise NotPlain
            if tag == SERIES_TAG:
                _series(body, at, stop, context, points, columns)
            at = stop
    except (IndexError, WriteUnreadable) as error:  # a field is longer than the body
        raise NotPlain from error
    points.expect(len(columns.series))
    if columns.series:
        series = np.array(columns.series, dtype=np.int64)
        points.take(series, _times(body, columns), _values(body, columns))


def _length(body: bytes, at: int) -> tuple[int, int]:
    size = body[at]
    if size < 0x80:
        return size, at + 1
    return _varint(body, at, len(body))


def _series(
    body: bytes, at: int, stop: int, context: int, points: Points, columns: _Columns
) -> None:
    begin = at
    while at < stop and body[at] == LABEL_TAG:
        size, at = _length(body, at + 1)
        at += size
    key = (context, body[begin:at])
    found = points.known.raw.young.get(key)
    if found is None:
        found = points.find(key)
    if found is None:
        found = _learn(key, key[1], points)
    while at < stop:
        size = body[at + 1]
        if body[at] != SAMPLE_TAG:
            raise NotPlain
        at += 2
        if size == 10 + TIME_BYTES and body[at] == VALUE_TAG and body[at + 9] == TIME_TAG:
            columns.values.append(at + 1)
            columns.times.append(at + 10)
        elif size == 1 + TIME_BYTES and body[at] == TIME_TAG:
            columns.zeros.append(len(columns.series))
            columns.values.append(0)
            columns.times.append(at + 1)
        else:
            raise NotPlain
        columns.series.append(found)
        at += size
    if at != stop:
        raise NotPlain


def _learn(key: RawKey, labels: bytes, points: Points) -> int:
    try:
        named = _labels(labels, points.rules)
    except WriteUnreadable as error:
        raise NotPlain from error
    if isinstance(named, str):
        raise NotPlain
    name, rest = named
    return points.learn(key, name, "", Kind.gauge, rest)


def _times(body: bytes, columns: _Columns) -> Integers:
    """Return nanoseconds; a time of this century takes six bytes of seven bits."""
    at = np.array(columns.times)[:, None] + np.arange(TIME_BYTES)
    digits = np.frombuffer(body, dtype=np.uint8)[at]
    if (digits[:, :-1] < 0x80).any() or (digits[:, -1] >= 0x80).any():
        raise NotPlain
    shifts = 7 * np.arange(TIME_BYTES)
    milliseconds: Integers = ((digits.astype(np.int64) & 0x7F) << shifts).sum(axis=1)
    return milliseconds * MILLISECOND


def _values(body: bytes, columns: _Columns) -> Floats:
    at = np.array(columns.values)[:, None] + np.arange(8)
    found = np.frombuffer(body, dtype=np.uint8)[np.minimum(at, len(body) - 1)]
    values = np.ascontiguousarray(found).view("<f8").ravel().astype(np.float64)
    values[columns.zeros] = 0.0
    return values


def collect(body: bytes, points: Points) -> None:
    """Put the samples into `points` one by one. Raises `WriteUnreadable`."""
    for number, wire, begin, end in _fields(body, 0, len(body)):
        if number == 1 and wire == LENGTH:
            _collect_series(body, begin, end, points)


def shown(body: bytes, rules: Rules) -> list[dict[str, object]]:
    """Return the series and samples of a letter, in JSON."""
    found: list[dict[str, object]] = []
    for labels, samples in _plain_series(body):
        named = _labels(labels, rules)
        name, rest = (named, {}) if isinstance(named, str) else named
        pairs = [_sample(body, begin, end) for begin, end in samples]
        points = [[time, value if math.isfinite(value) else str(value)] for value, time in pairs]
        found.append({"name": name, "labels": rest, "samples": points})
    return found


def _collect_series(body: bytes, begin: int, end: int, points: Points) -> None:
    head = bytearray()
    samples, histograms = list[tuple[int, int]](), 0
    for number, wire, start, stop in _fields(body, begin, end):
        if wire != LENGTH:
            continue
        if number == 1:
            head += _framed(1, body[start:stop])
        elif number == 2:  # samples
            samples.append((start, stop))
        elif number == 4:  # histograms
            histograms += 1
    points.expect(points.seen + len(samples) + histograms)
    named = _labels(bytes(head), points.rules)
    slot = named if isinstance(named, str) else points.slot(named[0], "", Kind.gauge, named[1])
    for start, stop in samples:
        value, time = _sample(body, start, stop)
        if math.isnan(value) and body[start:stop].find(struct.pack("<Q", STALE)) >= 0:
            points.ignore()
            continue
        letter = partial(_letter, bytes(head), body[start:stop])
        points.add(slot, max(MIN_TIME, min(time, MAX_TIME)), value, letter)
    for _ in range(histograms):
        points.reject(NATIVE_HISTOGRAM, lambda: None)


def _letter(labels: bytes, sample: bytes) -> bytes:
    return _framed(1, labels + _framed(2, sample))


def _framed(number: int, payload: bytes) -> bytes:
    size, head = len(payload), bytearray([number << 3 | LENGTH])
    while size > 0x7F:  # the continuation bit
        head.append(size & 0x7F | 0x80)
        size >>= 7
    head.append(size)
    return bytes(head) + payload


def _plain_series(body: bytes) -> Iterator[tuple[bytes, list[tuple[int, int]]]]:
    """Yield the bytes of all labels, and where each sample is, of series that hold nothing else."""
    for number, wire, begin, end in _fields(body, 0, len(body)):
        if wire != LENGTH:
            raise NotPlain
        if number != 1:
            continue
        samples, labels_end = list[tuple[int, int]](), begin
        for inner, kind, start, stop in _fields(body, begin, end):
            if kind != LENGTH or inner not in {1, 2} or (inner == 1 and samples):
                raise NotPlain
            if inner == 1:
                labels_end = stop
            else:
                samples.append((start, stop))
        yield body[begin:labels_end], samples


def _labels(head: bytes, rules: Rules) -> tuple[str, dict[str, str]] | str:
    """Return the name and the other labels, or the reason why there are none."""
    labels: dict[str, str] = {}
    for number, wire, begin, end in _fields(head, 0, len(head)):
        if number != 1 or wire != LENGTH:
            raise WriteUnreadable("a label is not a message")
        pair = {1: "", 2: ""}
        for inner, kind, start, stop in _fields(head, begin, end):
            if kind == LENGTH and inner in pair:
                try:
                    pair[inner] = head[start:stop].decode()
                except UnicodeDecodeError as error:
                    raise WriteUnreadable("a label is not UTF-8") from error
        if pair[1] in labels:
            return TWICE
        if len(labels) > rules.max_labels:  # one more is the name
            return rules.too_many_labels
        labels[pair[1]] = pair[2]
    name = labels.pop("__name__", "")
    if not name:
        return NO_NAME
    if DEVICE_LABEL in labels:
        labels[f"exported_{DEVICE_LABEL}"] = labels.pop(DEVICE_LABEL)
    return name, {key: value for key, value in labels.items() if value}


def _sample(body: bytes, begin: int, end: int) -> tuple[float, int]:
    """Return value and nanoseconds."""
    if end - begin > 10 and body[begin] == 0x09 and body[begin + 9] == 0x10:
        (value,) = struct.unpack_from("<d", body, begin + 1)
        time, at = _varint(body, begin + 10, end)
        if at == end:
            return value, _signed(time) * MILLISECOND
    value, milliseconds = 0.0, 0  # what protobuf leaves out
    for number, wire, start, stop in _fields(body, begin, end):
        if (number, wire) == (1, FIXED64):
            (value,) = struct.unpack_from("<d", body, start)
        elif (number, wire) == (2, VARINT):
            milliseconds = _signed(_varint(body, start, stop)[0])
    return value, milliseconds * MILLISECOND


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


def _varint(body: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 7 * VARINT_BYTES:
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # the continuation bit
            return value & (1 << 64) - 1, at
        shift += 7
    raise WriteUnreadable("a number has no end")


def _fields(body: bytes, at: int, end: int) -> Iterator[Field]:
    """Yield the fields of a message. Raises `WriteUnreadable`."""
    while at < end:
        tag, at = _varint(body, at, end)
        wire = tag & 7
        if wire == LENGTH:
            size, at = _varint(body, at, end)
            stop = at + size
        elif wire == VARINT:
            _, stop = _varint(body, at, end)
        elif wire in {FIXED64, FIXED32}:
            stop = at + (8 if wire == FIXED64 else 4)
        else:
            raise WriteUnreadable("there is no such type of field")
        if stop > end or tag >> 3 == 0:
            raise WriteUnreadable("a field is longer than its message")
        yield tag >> 3, wire, at, stop
        at = stop
