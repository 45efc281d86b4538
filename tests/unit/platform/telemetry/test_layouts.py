"""A body whose like came before is read off, and means exactly what walking it would mean."""

from __future__ import annotations

import dataclasses
import math
import random
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)

from support.mutations import mutations
from support.telemetry import SECOND, attribute, otlp
from tensorguard.platform.telemetry import otlp_fast, readers
from tensorguard.platform.telemetry.cache import KnownSeries
from tensorguard.platform.telemetry.layouts import IN_USE_SECONDS, Layouts
from tensorguard.platform.telemetry.points import NotPlain, Points, Rules

NOW = 1_900_000_000 * SECOND
RULES = Rules(NOW - 10**6 * SECOND, NOW + 300 * SECOND, 10_000, 8, "acme", "arm-1")
OTLP = readers.OTLP["application/x-protobuf"]
numbers = st.floats(allow_nan=False, allow_infinity=False)


class Committed:
    """What a process knows, as if every series that it met had been committed."""

    def __init__(self) -> None:
        self.known = KnownSeries()
        self.identities: dict[int, bytes] = {}

    def read(self, body: bytes, rules: Rules = RULES) -> list[tuple]:
        points = Points(rules, self.known)
        OTLP.fast(body, points)
        for pending in points.pending:
            number = len(self.identities) + 1
            self.identities[number] = pending.identity.key
            self.known.raw.put(pending.raw, number)
            self.known.pending.drop(pending.raw)
        keys = [
            points.pending[-1 - slot].identity.key if slot < 0 else self.identities[slot]
            for slot in points.series
        ]
        return list(zip(keys, points.times, points.values, strict=True))


def slowly(body: bytes) -> list[tuple]:
    points = Points(RULES, KnownSeries())
    OTLP.slow(body, points)
    assert not points.rejected
    keys = [points.pending[-1 - slot].identity.key for slot in points.series]
    return list(zip(keys, points.times, points.values, strict=True))


def learnt(request: ExportMetricsServiceRequest) -> Committed:
    """Return what knows the layout of a request."""
    found, body = Committed(), request.SerializeToString()
    for _ in range(3):  # the series, the habit, the layout
        found.read(body)
    assert len(found.known.layouts) == 1
    return found


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=1, max_size=30),
    st.data(),
)
def test_other_times_and_values_in_a_known_layout(
    points: list[tuple[int, bool, bool]], data: st.DataObject
) -> None:
    def request(fill: bool) -> ExportMetricsServiceRequest:
        made = otlp(NOW, 5)
        gauge = made.resource_metrics[0].scope_metrics[0].metrics.add(name="steps").gauge
        for joint, whole, start in points:
            second = data.draw(st.integers(1, 1000)) if fill else 1
            value = data.draw(numbers) if fill else 1.5
            point = gauge.data_points.add(time_unix_nano=NOW - second * SECOND)
            if whole:
                point.as_int = int(max(min(value, 2**62), -(2**62)))
            else:
                point.as_double = value
            if start:
                point.start_time_unix_nano = NOW - (1000 + second) * SECOND
            attribute(point.attributes, "joint", str(joint))
        return made

    found = learnt(request(fill=False))
    body = request(fill=True).SerializeToString()
    key = ("acme", "arm-1", len(body), otlp_fast._first_resource(body))
    assert found.known.layouts.find(key, np.frombuffer(body, dtype=np.uint8)) is not None
    assert found.read(body) == slowly(body)


@pytest.mark.parametrize("seed", range(4))
def test_a_mutant_of_a_known_layout_is_read_alike_or_not_at_all(seed: int) -> None:
    request = otlp(NOW, 12)
    request.resource_metrics[0].scope_metrics[0].metrics.add(name="s").sum.data_points.add(
        time_unix_nano=NOW, as_int=5
    )
    found, understood = learnt(request), 0
    for mutant in mutations(request.SerializeToString(), count=300, seed=seed):
        try:
            told = found.read(mutant)
        except NotPlain:
            continue
        assert told == slowly(mutant)
        understood += 1
    assert understood


def test_a_value_that_is_no_number_is_left_to_the_slow_way_in_a_known_layout() -> None:
    request = otlp(NOW, 4)
    found = learnt(request)
    for bad in (math.nan, math.inf):
        request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[2].as_double = bad
        with pytest.raises(NotPlain):
            found.read(request.SerializeToString())


def test_a_time_out_of_range_is_left_to_the_slow_way_in_a_known_layout() -> None:
    request = otlp(NOW, 4)
    found = learnt(request)
    points = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    for bad in (RULES.oldest - 1, RULES.newest + 1):
        points[2].time_unix_nano = bad
        with pytest.raises(NotPlain):
            found.read(request.SerializeToString())


def test_another_device_with_the_same_bytes_writes_its_own_series() -> None:
    request = otlp(NOW, 4)
    found, body = learnt(request), request.SerializeToString()
    mine = {key for key, _, _ in found.read(body)}
    others = {key for key, _, _ in found.read(body, dataclasses.replace(RULES, device_id="arm-2"))}
    assert mine
    assert not mine & others


def test_the_point_limit_holds_in_a_known_layout() -> None:
    request = otlp(NOW, 40)
    found, body = learnt(request), request.SerializeToString()
    with pytest.raises(Exception, match="at most 39 samples"):
        found.read(body, dataclasses.replace(RULES, max_points=39))


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_layouts_are_bounded_and_those_in_use_stay() -> None:
    clock, size, random_bytes = Clock(), 1000, random.Random(5)
    layouts = Layouts(max_bytes=40 * size, clock=clock)
    nothing = np.zeros(0, dtype=np.int64)

    def learn(key: int) -> np.ndarray:
        body = np.frombuffer(random_bytes.randbytes(size), dtype=np.uint8)
        layouts.learn(key, body, nothing, nothing, nothing, nothing)
        return body

    bodies = [learn(key) for key in range(30)]
    assert len(layouts) == 20  # form and mask, a thousand bytes each; all are in use
    clock.now = IN_USE_SECONDS
    assert layouts.find(0, bodies[0]) is not None
    learn(100)
    assert len(layouts) == 20
    assert layouts.find(0, bodies[0]) is not None  # used just now
    assert layouts.find(1, bodies[1]) is None  # the one that was not used for longest
    huge = np.zeros(40 * size, dtype=np.uint8)
    layouts.learn(200, huge, nothing, nothing, nothing, nothing)
    assert layouts.find(200, huge) is None


def test_a_body_that_came_once_is_not_learnt() -> None:
    found, first = Committed(), otlp(NOW, 4)
    found.read(first.SerializeToString())
    assert len(found.known.layouts) == 0


def test_the_first_resource_is_found_in_what_can_be_read_only() -> None:
    body = otlp(NOW, 1).SerializeToString()
    resource = ExportMetricsServiceRequest.FromString(body).resource_metrics[0].resource
    assert otlp_fast._first_resource(body) == resource.SerializeToString()
    for odd in (b"", b"\x0a", b"\x0a\xff\xff\xff\xff\xff\xff", struct.pack("<Q", 1)):
        assert otlp_fast._first_resource(odd) == b""
