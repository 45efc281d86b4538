"""OTLP protobuf as exporters write it, decoded straight into columns: 10 times faster than messages.

A body whose like came before is not even walked: see `layouts`.

Only what every exporter sends is understood here: fields in ascending order, numbers with a time,
attributes and nothing else. Anything more raises `NotPlain`, and `otlp.collect` does the whole
request. A series is known by the very bytes of its resource, scope, metric and attributes; bytes
that are new are parsed by protobuf, and so checked, once.

Field numbers are those of opentelemetry/proto/metrics/v1/metrics.proto.
"""

# ruff: noqa: PLR2004 - tags and field numbers are the wire format's own

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from google.protobuf.message import DecodeError
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
)

from tensorguard.platform.telemetry.layouts import columns
from tensorguard.platform.telemetry.otlp import kind_of_sum, merge, own_labels, shared_labels
from tensorguard.platform.telemetry.points import Kind, NotPlain, Points

LENGTH: Final = 2  # the wire type of texts and messages
VARINT_BYTES: Final = 5  # of a length
POINT_TAG, START_TAG, TIME_TAG = 0x0A, 0x11, 0x19
DOUBLE_TAG, INT_TAG, ATTRIBUTES_TAG = 0x21, 0x31, 0x3A
GAUGE, SUM = 5, 7
LONGEST_RUN = 4096  # points that are compared at once
SHORTEST_RUN = 4
TAIL_TAGS: Final = (0x10, 0x18)  # temporality and monotonicity of a sum


@dataclass(slots=True)
class _Columns:
    series: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)  # of the tag before the time
    starts: list[int] = field(default_factory=list)  # of the tags before start times
    integers: list[int] = field(default_factory=list)  # rows whose value is an integer


def decode(body: bytes, points: Points) -> None:
    """Put all samples of `body` into `points`, or none. Raises `NotPlain` or `TooManyPoints`."""
    rules, layouts = points.rules, points.known.layouts
    raw = np.frombuffer(body, dtype=np.uint8)
    key = (rules.tenant_id, rules.device_id, len(body), _first_resource(body))
    layout = layouts.find(key, raw)
    if layout is not None:
        points.take(layout.series, *columns(raw, layout.times, layout.integers))
        return
    found = _walk(body, points)
    if not found.offsets:
        return
    series, times, starts, integers = (
        np.array(column, dtype=np.int64)
        for column in (found.series, found.offsets, found.starts, found.integers)
    )
    times, starts = times + 1, starts + 1
    points.take(series, *columns(raw, times, integers))
    if layouts.worth(key) and not points.pending:
        layouts.learn(key, raw, series, times, starts, integers)


def _first_resource(body: bytes) -> bytes:
    """Return the bytes that name who sends, if the body begins with them."""
    try:
        for _, begin, end in _fields(body, 0, len(body)):
            for number, start, stop in _fields(body, begin, end):
                return body[start:stop] if number == 1 else b""
    except (IndexError, NotPlain):
        pass
    return b""


def _walk(body: bytes, points: Points) -> _Columns:
    found = _Columns()
    try:
        for number, begin, end in _fields(body, 0, len(body)):
            if number != 1:
                raise NotPlain
            _resource(body, begin, end, found, points)
    except IndexError as error:  # a field is longer than the body
        raise NotPlain from error
    return found


def _varint(body: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    for _ in range(VARINT_BYTES):
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:  # the continuation bit
            return value, at
        shift += 7
    raise NotPlain


def _fields(body: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield (number, begin, end) of fields with a length."""
    while at < end:
        tag, at = _varint(body, at)
        if tag & 7 != LENGTH:
            raise NotPlain
        size, at = _varint(body, at)
        stop = at + size
        if stop > end:
            raise NotPlain
        yield tag >> 3, at, stop
        at = stop


def _resource(body: bytes, begin: int, end: int, into: _Columns, points: Points) -> None:
    resource, scopes = b"", list[tuple[int, int]]()
    for number, start, stop in _fields(body, begin, end):
        if number == 1 and not resource and not scopes:
            resource = body[start:stop]
        elif number == 2:  # scope_metrics
            scopes.append((start, stop))
        elif number == 3:  # schema_url
            _text(body[start:stop])
        else:
            raise NotPlain
    if not scopes:
        raise NotPlain
    for start, stop in scopes:
        _scope(body, start, stop, resource, into, points)


def _scope(
    body: bytes, begin: int, end: int, resource: bytes, into: _Columns, points: Points
) -> None:
    scope, metrics = b"", list[tuple[int, int]]()
    for number, start, stop in _fields(body, begin, end):
        if number == 1 and not scope and not metrics:
            scope = body[start:stop]
        elif number == 2:  # metrics
            metrics.append((start, stop))
        elif number == 3:  # schema_url
            _text(body[start:stop])
        else:
            raise NotPlain
    if not metrics:
        raise NotPlain
    for start, stop in metrics:
        _metric(body, start, stop, _Around(resource, scope), into, points)


@dataclass(frozen=True, slots=True)
class _Around:
    """The bytes of resource and scope."""

    resource: bytes
    scope: bytes

    def labels(self, points: Points) -> dict[str, str]:
        """Parse them. Raises `NotPlain`."""
        resource, scope = ResourceMetrics(), ScopeMetrics()
        try:
            resource.resource.ParseFromString(self.resource)
            scope.scope.ParseFromString(self.scope)
        except DecodeError as error:
            raise NotPlain from error
        found = shared_labels(resource, scope, points)
        if isinstance(found, str):
            raise NotPlain
        return found


def _metric(
    body: bytes, begin: int, end: int, around: _Around, into: _Columns, points: Points
) -> None:
    head, data = list[bytes](), None
    for number, start, stop in _fields(body, begin, end):
        if number in {1, 3}:  # name, unit
            head.append(bytes([number]) + body[start:stop])
        elif number in {GAUGE, SUM} and data is None:
            data = (number, start, stop)
        elif number == 2:  # description
            _text(body[start:stop])
        else:
            raise NotPlain
    if data is None:
        raise NotPlain
    form, start, stop = data
    kind = Kind.gauge
    if form == SUM:
        kind, stop = _kind(body, start, stop)
    rules = points.rules
    key = (rules.tenant_id, rules.device_id, around.resource, around.scope, tuple(head), kind)
    names = _Names(around, tuple(head), kind, points.known.context(key), points)
    if start == stop:  # without a point nothing is parsed, and so nothing checked
        raise NotPlain
    _numbers(body, start, stop, names, into)
    points.expect(len(into.offsets))


def _kind(body: bytes, begin: int, end: int) -> tuple[Kind, int]:
    """Guess the kind of a sum from its last bytes; what is no tail is found out as a bad point."""
    temporality, monotonic = 0, False
    if end - begin >= 2 and body[end - 2] == TAIL_TAGS[1] and body[end - 1] == 1:
        monotonic, end = True, end - 2
    if end - begin >= 2 and body[end - 2] == TAIL_TAGS[0] and body[end - 1] in {1, 2}:
        temporality, end = body[end - 1], end - 2
    return kind_of_sum(temporality, monotonic=monotonic), end


@dataclass(slots=True)
class _Names:
    """Finds the series of a point by the bytes of its attributes."""

    around: _Around
    head: tuple[bytes, ...]
    kind: Kind
    context: int
    points: Points

    def series(self, attributes: bytes) -> int:
        """Return the series. Raises `NotPlain`."""
        raw = (self.context, attributes)
        found = self.points.find(raw)
        if found is not None:
            return found
        metric, point = Metric(), NumberDataPoint()
        for part in self.head:
            setattr(metric, "name" if part[0] == 1 else "unit", _text(part[1:]))
        try:
            point.ParseFromString(attributes)
        except DecodeError as error:
            raise NotPlain from error
        if [descriptor.name for descriptor, _ in point.ListFields()] not in ([], ["attributes"]):
            raise NotPlain
        if point.ByteSize() != len(attributes):  # unknown fields, or not as we would write it
            raise NotPlain
        own = own_labels(point.attributes, self.points)
        if isinstance(own, str):
            raise NotPlain
        labels = merge(self.around.labels(self.points), own)
        return self.points.learn(raw, metric.name, metric.unit, self.kind, labels)


def _text(part: bytes) -> str:
    try:
        return part.decode()
    except UnicodeDecodeError as error:
        raise NotPlain from error


def _numbers(  # noqa: C901 - one loop: a call per point would double its time
    body: bytes, at: int, end: int, names: _Names, into: _Columns
) -> None:
    """Walk the data points of a gauge or sum."""
    known, context = names.points.known.raw.young, names.context
    add_series, add_offset = into.series.append, into.offsets.append
    before, series, try_runs = None, 0, True
    while at < end:
        entry = at
        if body[at] != POINT_TAG:
            raise NotPlain
        size = body[at + 1]
        at += 2
        if size >= 0x80:  # the continuation bit
            size, at = _varint(body, at - 1)
        stop = at + size
        started = size and body[at] == START_TAG
        if started:
            into.starts.append(at)
            at += 9
        if stop > end or at + 18 > stop or body[at] != TIME_TAG:
            raise NotPlain
        form = body[at + 9]
        if form == INT_TAG:
            into.integers.append(len(into.offsets))
        elif form != DOUBLE_TAG:
            raise NotPlain
        attributes = body[at + 18 : stop]
        if attributes == before:
            if try_runs and form == DOUBLE_TAG:
                run = _run(body, entry, at - entry, stop - entry, end)
                if run >= SHORTEST_RUN:
                    step = stop - entry
                    into.series += [series] * run
                    into.offsets += range(at, at + run * step, step)
                    if started:
                        into.starts += range(at - 9 + step, at - 9 + run * step, step)
                    at = entry + run * step
                    continue
                try_runs = False
        else:
            found = known.get((context, attributes))
            series = names.series(attributes) if found is None else found
            before = attributes
        add_series(series)
        add_offset(at)
        at = stop


def _run(body: bytes, entry: int, time: int, step: int, end: int) -> int:
    """Return how many entries from `entry` on differ in their times and values alone."""
    count = min((end - entry) // step, LONGEST_RUN)
    block = np.frombuffer(body, dtype=np.uint8, count=count * step, offset=entry)
    rows = block.reshape(count, step)
    same = rows == rows[0]
    begin = time - 8 if time > 9 and body[entry + time - 9] == START_TAG else time + 1
    same[:, begin:time] = True  # a start time
    same[:, time + 1 : time + 9] = True
    same[:, time + 10 : time + 18] = True
    if same.all():
        return count
    return int(same.all(axis=1).argmin())
