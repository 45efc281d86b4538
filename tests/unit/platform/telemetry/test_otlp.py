"""OTLP/HTTP in, as an unmodified exporter sends it."""

from __future__ import annotations

import gzip
import json

import pytest
from google.protobuf import json_format
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality
from sqlalchemy import text

from support.platform import Platform
from support.telemetry import (
    NOTHING,
    PROTOBUF,
    SECOND,
    at,
    attribute,
    device,
    export,
    exported,
    otlp,
    stored,
)
from tensorguard.platform.telemetry.otlp import parse_json


def rows(platform: Platform, query: str) -> list[tuple]:
    with platform.session() as session:
        return [tuple(row) for row in session.execute(text(query))]


def labels(platform: Platform) -> list[dict]:
    found = [row[0] for row in rows(platform, "SELECT labels FROM series ORDER BY id")]
    return [json.loads(label) if isinstance(label, str) else label for label in found]


def test_a_gauge_is_stored_with_resource_scope_and_point_attributes(platform: Platform) -> None:
    answer = export(platform, device(platform), otlp(at(platform.clock())).SerializeToString())
    assert not exported(answer).HasField("partial_success")
    assert answer.content == b""
    assert stored(platform) == {"series": 1, "sample": 3, "latest": 1, "batch": 1}
    assert rows(platform, "SELECT name, unit, kind, device_id FROM series") == [
        ("joint.angle", "rad", "gauge", "arm-1")
    ]
    assert labels(platform) == [
        {"device": "arm-1", "joint": "0", "otel.scope.name": "joints", "service.name": "arm"}
    ]


def test_the_same_export_again_is_stored_once_though_compressed_anew(platform: Platform) -> None:
    headers, body = device(platform), otlp(at(platform.clock())).SerializeToString()
    for mtime in (1, 2):
        packed = gzip.compress(body, mtime=mtime)
        exported(export(platform, headers, packed, content_encoding="gzip"))
    exported(export(platform, headers, body))
    assert stored(platform) == {"series": 1, "sample": 3, "latest": 1, "batch": 1}


def test_json_is_the_same_export(platform: Platform) -> None:
    request = otlp(at(platform.clock()))
    document = json_format.MessageToDict(request) | {"unknownMember": [1]}
    answer = export(
        platform,
        device(platform),
        json.dumps(document).encode(),
        content_type="application/json; charset=utf-8",
    )
    assert answer.status_code == 200, answer.text
    assert answer.json() == {}
    assert parse_json(json.dumps(document).encode()) == request
    assert stored(platform)["sample"] == 3


def test_sums_keep_their_meaning_and_integers_are_numbers(platform: Platform) -> None:
    now = at(platform.clock())
    request = otlp(now, 0)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    kinds = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE, True
    delta = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA, True
    level = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE, False
    for name, (temporality, monotonic) in {"a": kinds, "b": delta, "c": level}.items():
        data = metrics.add(name=name).sum
        data.aggregation_temporality, data.is_monotonic = temporality, monotonic
        data.data_points.add(time_unix_nano=now, as_int=-7)
    exported(export(platform, device(platform), request.SerializeToString()))
    assert rows(platform, "SELECT name, kind FROM series ORDER BY name") == [
        ("a", "counter"),
        ("b", "delta"),
        ("c", "total"),
    ]
    assert rows(platform, "SELECT DISTINCT value FROM sample") == [(-7.0,)]


def test_what_is_not_stored_is_counted_and_named(platform: Platform) -> None:
    now = at(platform.clock())
    request = otlp(now)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    histogram = metrics.add(name="h").histogram.data_points.add(time_unix_nano=now, count=1)
    histogram.bucket_counts.extend([1, 2, 3])
    many = metrics.add(name="e").exponential_histogram.data_points.add(time_unix_nano=now)
    many.positive.bucket_counts.extend([1] * 1025)
    metrics.add(name="s").summary.data_points.add(time_unix_nano=now, count=1, sum=float("nan"))
    metrics.add(name="nothing")
    bad = metrics.add(name="bad").gauge.data_points
    for value in (float("nan"), float("inf"), float("-inf")):
        bad.add(time_unix_nano=now, as_double=value)
    bad.add(as_double=1)
    bad.add(time_unix_nano=now)
    bad.add(time_unix_nano=now, flags=1)
    bad.add(time_unix_nano=2**64 - 1, as_double=1)
    twice = bad.add(time_unix_nano=now, as_double=1)
    attribute(twice.attributes, "a", "1")
    attribute(twice.attributes, "a", "2")
    metrics.add(name="").gauge.data_points.add(time_unix_nano=now, as_double=1)
    partial = exported(export(platform, device(platform), request.SerializeToString()))
    assert partial.partial_success.rejected_data_points == 12
    for reason in (
        "its bucket counts do not fit its bounds",
        "more than 1024 buckets",
        "not a finite number",
        "it has no time",
        "it has no value",
        "no value was recorded",
        "in the future",
        "given twice",
        "the name is empty",
    ):
        assert reason in partial.partial_success.error_message
    assert stored(platform) == {"series": 1, "sample": 3, "latest": 1, "batch": 1}


def test_a_point_that_contradicts_its_resource_keeps_both(platform: Platform) -> None:
    request = otlp(at(platform.clock()), 1)
    point = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0]
    attribute(point.attributes, "service.name", "gripper")
    exported(export(platform, device(platform), request.SerializeToString()))
    assert labels(platform)[0]["service.name"] == "gripper"
    assert labels(platform)[0]["resource.service.name"] == "arm"


def test_attributes_of_every_type_become_words(platform: Platform) -> None:
    request = otlp(at(platform.clock()), 1)
    point = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0]
    point.attributes.add(key="bool").value.bool_value = True
    point.attributes.add(key="int").value.int_value = 5
    point.attributes.add(key="float").value.double_value = 0.5
    point.attributes.add(key="bytes").value.bytes_value = b"\0\1"
    point.attributes.add(key="none")
    array = point.attributes.add(key="array").value.array_value
    array.values.add().string_value = "x"
    array.values.add().int_value = 1
    pairs = point.attributes.add(key="map").value.kvlist_value
    pairs.values.add(key="k").value.bool_value = False
    exported(export(platform, device(platform), request.SerializeToString()))
    found = labels(platform)[0]
    expected = {
        "bool": "true",
        "int": "5",
        "float": "0.5",
        "bytes": "AAE=",
        "none": "",
        "array": '["x",1]',
        "map": '{"k":false}',
    }
    assert expected.items() <= found.items()


def test_an_empty_export_is_taken_and_stores_nothing(platform: Platform) -> None:
    assert export(platform, device(platform), b"").status_code == 200
    assert stored(platform) == NOTHING


@pytest.mark.parametrize("size", [0, 5])
def test_too_many_points_are_refused_whole(sqlite_platform: Platform, size: int) -> None:
    now, limit = at(sqlite_platform.clock()), sqlite_platform.settings.max_batch_points
    request = otlp(now, 0)
    points = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
    points.extend([points.add(time_unix_nano=now, as_int=1)] * (limit - 1 + size))
    answer = export(sqlite_platform, device(sqlite_platform), request.SerializeToString())
    assert answer.status_code == (413 if size else 200)
    assert stored(sqlite_platform)["sample"] == (0 if size else 1)


def test_an_export_over_many_seconds_is_one_series(platform: Platform) -> None:
    now = at(platform.clock())
    exported(export(platform, device(platform), otlp(now, 200).SerializeToString()))
    exported(export(platform, device(platform), otlp(now + 100 * SECOND, 200).SerializeToString()))
    assert stored(platform)["sample"] == 300
    assert stored(platform)["series"] == 1


def test_the_answer_has_the_encoding_of_the_question(sqlite_platform: Platform) -> None:
    now = at(sqlite_platform.clock())
    request = otlp(now, 1)
    request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points[0].as_double = float(
        "nan"
    )
    headers = device(sqlite_platform)
    binary = export(sqlite_platform, headers, request.SerializeToString())
    assert binary.headers["content-type"] == PROTOBUF
    text_answer = export(
        sqlite_platform,
        headers,
        json_format.MessageToJson(request).encode(),
        content_type="application/json",
    )
    assert text_answer.json() == {
        "partialSuccess": {
            "rejectedDataPoints": "1",
            "errorMessage": "the value is not a finite number",
        }
    }
