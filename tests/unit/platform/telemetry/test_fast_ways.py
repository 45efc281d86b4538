"""The fast way of a decoder says what the slow one says, or nothing."""

from __future__ import annotations

import random
import struct

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.mutations import mutations
from support.telemetry import SECOND, attribute, framed, otlp, varint, write_request
from tensorguard.platform.telemetry import readers
from tensorguard.platform.telemetry.cache import KnownSeries
from tensorguard.platform.telemetry.points import NotPlain, Points, Rules
from tensorguard.platform.telemetry.remote_write import STALE
from tensorguard.wire.telemetry import Batch, Sample

NOW = 1_900_000_000 * SECOND
RULES = Rules(NOW - 10**6 * SECOND, NOW + 300 * SECOND, 10_000, 8, "acme", "arm-1")
OTLP = readers.OTLP["application/x-protobuf"]


def told(points: Points) -> list[tuple]:
    """Return (series, time, value) in order."""
    names = []
    for slot in points.series:
        identity = points.pending[-1 - slot].identity
        names.append((identity.name, identity.unit, str(identity.kind), identity.labels))
    return list(zip(names, points.times, points.values, strict=True))


def both(reader: readers.Reader, body: bytes) -> bool:
    """Compare the two ways; say whether the fast one understood."""
    slow = Points(RULES, KnownSeries())
    reader.slow(body, slow)
    known = KnownSeries()
    for _ in range(2):  # with what was learnt, too
        fast = Points(RULES, known)
        try:
            reader.fast(body, fast)
        except NotPlain:
            return False
        assert slow.rejected == 0
        assert told(fast) == told(slow)
        assert fast.seen == slow.seen
    return True


numbers = st.floats(allow_nan=False, allow_infinity=False)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 60), numbers, st.booleans(), st.booleans()),
        min_size=1,
        max_size=40,
    ),
    st.sampled_from([None, 0, 1, 2]),
)
def test_otlp(points: list[tuple], temporality: int | None) -> None:
    request = otlp(NOW, 1)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    metric = metrics.add(name="steps", unit="1", description="how many")
    data = metric.gauge
    if temporality is not None:
        data = metric.sum
        data.aggregation_temporality, data.is_monotonic = temporality, temporality == 2
    for joint, second, value, whole, start in points:
        point = data.data_points.add(time_unix_nano=NOW - second * SECOND)
        if whole:
            point.as_int = int(max(min(value, 2**62), -(2**62)))
        else:
            point.as_double = value
        if start:
            point.start_time_unix_nano = NOW - 100 * SECOND
        if joint:
            attribute(point.attributes, "joint", str(joint))
            attribute(point.attributes, "long", "x" * (90 * joint))
    assert both(OTLP, request.SerializeToString())


def test_runs_of_one_series_are_found() -> None:
    request = otlp(NOW, 300)
    data = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    attribute(data[150].attributes, "other", "1")
    assert both(OTLP, request.SerializeToString())


@pytest.mark.parametrize("seed", range(4))
def test_mutated_exports_are_read_alike_or_not_at_all(seed: int) -> None:
    request = otlp(NOW, 12)
    request.resource_metrics[0].scope_metrics[0].metrics.add(name="s").sum.data_points.add(
        time_unix_nano=NOW, as_int=5
    )
    body = request.SerializeToString()
    generator = random.Random(seed)
    understood = 0
    for _ in range(300):
        mutant = bytearray(body)
        for _ in range(generator.randint(1, 3)):
            mutant[generator.randrange(len(mutant))] ^= 1 << generator.randrange(8)
        fast = Points(RULES, KnownSeries())
        try:
            OTLP.fast(bytes(mutant), fast)
        except NotPlain:
            continue
        slow = Points(RULES, KnownSeries())
        OTLP.slow(bytes(mutant), slow)
        assert told(fast) == told(slow)
        understood += 1
    assert understood


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.text("abc", min_size=1, max_size=3),
        st.text(max_size=5).filter(lambda t: "\0" not in t),
        max_size=5,
    ),
    st.lists(st.tuples(st.integers(0, 60), numbers), max_size=20),
)
def test_remote_write(labels: dict, points: list[tuple]) -> None:
    pairs = [(NOW // 10**6 - second * 1000, value) for second, value in points]
    body = write_request({"__name__": "up", **labels}, pairs) * 2
    body += framed(3, b"metadata is passed over")
    assert both(readers.REMOTE_WRITE, body)


def test_a_zero_that_protobuf_leaves_out_is_a_zero() -> None:
    time = NOW // 10**6
    series = framed(1, framed(1, b"__name__") + framed(2, b"up"))
    body = framed(1, series + framed(2, b"\x10" + varint(time)))
    assert both(readers.REMOTE_WRITE, body)
    points = Points(RULES, KnownSeries())
    readers.REMOTE_WRITE.fast(body, points)
    assert list(points.values) == [0.0]


def test_a_staleness_mark_is_no_sample() -> None:
    (stale,) = struct.unpack("<d", struct.pack("<Q", STALE))
    body = write_request({"__name__": "up"}, [(NOW // 10**6, 1.0), (NOW // 10**6 + 1, stale)])
    points, _ = readers.read(readers.REMOTE_WRITE, body, RULES, KnownSeries())
    assert (points.good, points.rejected, points.ignored) == (1, 0, 1)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("ab"), st.integers(0, 60), numbers, st.sampled_from("012")),
        min_size=1,
        max_size=20,
    )
)
def test_our_json(rows: list[tuple]) -> None:
    samples = [
        Sample(name, value, NOW - second * SECOND, {"joint": joint}, "rad")
        for name, second, value, joint in rows
    ]
    assert both(readers.OUR_JSON, msgspec.json.encode(Batch(samples)))


def test_mutated_remote_writes_are_read_alike_or_not_at_all() -> None:
    body = write_request({"__name__": "up", "job": "arm"}, [(NOW // 10**6, 1.0)] * 3)
    understood = 0
    for mutant in mutations(body, count=600, seed=7):
        fast = Points(RULES, KnownSeries())
        try:
            readers.REMOTE_WRITE.fast(mutant, fast)
        except NotPlain:
            continue
        slow = Points(RULES, KnownSeries())
        readers.REMOTE_WRITE.slow(mutant, slow)
        assert told(fast) == told(slow)
        understood += 1
    assert understood
