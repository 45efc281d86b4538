"""OTLP metrics (opentelemetry-proto 1.x): gauges and sums become samples, other points are named.

Labels of a series are the attributes of the resource, then `otel.scope.name` and
`otel.scope.version`, then the attributes of the point. Where a point sets the same attribute as its
resource to another value, the resource's is kept as `resource.<name>`, so that no two series become
one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from google.protobuf import json_format
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    AggregationTemporality,
    DataPointFlags,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)

from tensorguard.errors import MalformedInput
from tensorguard.platform.telemetry.points import Kind, Points, Refused
from tensorguard.wire.telemetry import MAX_LABEL_VALUE, MAX_TIME, Answer

MAX_NESTING = 8  # of an attribute's value; a label is a word, not a document

NOT_A_NUMBER: Final = "its kind of point (histogram or summary) is not taken; send gauges or sums"
NOTHING_RECORDED: Final = "it says that no value was recorded"
NO_TIME: Final = "it has no time"
NO_VALUE: Final = "it has no value"
TWICE: Final = "an attribute is given twice"

_NO_VALUE_FLAG: Final = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK


class OtlpUnreadable(MalformedInput):
    code = "otlp_unreadable"
    remedy = "Send an ExportMetricsServiceRequest of opentelemetry-proto 1.x, protobuf or JSON."


def parse_protobuf(body: bytes) -> ExportMetricsServiceRequest:
    """Return the request; an empty body is an empty request. Raises `OtlpUnreadable`."""
    request = ExportMetricsServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise OtlpUnreadable("the body is not an OTLP request in protobuf") from error
    return request


def parse_json(body: bytes) -> ExportMetricsServiceRequest:
    """Return the request. Unknown members are ignored, as OTLP demands. Raises `OtlpUnreadable`."""
    request = ExportMetricsServiceRequest()
    try:
        document = json.loads(body)
        if not isinstance(document, dict):
            raise OtlpUnreadable("an OTLP request in JSON is an object")
        json_format.ParseDict(document, request, ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise OtlpUnreadable("the body is not an OTLP request in JSON") from error
    return request


def response(answer: Answer) -> ExportMetricsServiceResponse:
    """Return what OTLP answers: empty, or a partial success that counts and names what was refused."""
    message = ExportMetricsServiceResponse()
    if answer.rejected_total:
        reasons = dict.fromkeys(rejection.reason for rejection in answer.rejected)
        message.partial_success.rejected_data_points = answer.rejected_total
        message.partial_success.error_message = "; ".join(list(reasons)[:16])
    return message


def collect(request: ExportMetricsServiceRequest, points: Points) -> None:
    """Put every data point of `request` into `points`."""
    points.expect(sum(_count(metric) for metric in _metrics(request)))
    for resource in request.resource_metrics:
        for scope in resource.scope_metrics:
            shared = _shared(resource, scope, points)
            for metric in scope.metrics:
                _collect_metric(metric, shared, points)


def _metrics(request: ExportMetricsServiceRequest) -> Iterable[Metric]:
    return (
        metric
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    )


def _count(metric: Metric) -> int:
    kind = metric.WhichOneof("data")
    return 0 if kind is None else len(getattr(metric, kind).data_points)


def _shared(resource: ResourceMetrics, scope: ScopeMetrics, points: Points) -> dict[str, str] | str:
    labels = _labels(resource.resource.attributes, points)
    if isinstance(labels, dict):
        if scope.scope.name:
            labels["otel.scope.name"] = scope.scope.name
        if scope.scope.version:
            labels["otel.scope.version"] = scope.scope.version
    return labels


def _collect_metric(metric: Metric, shared: dict[str, str] | str, points: Points) -> None:
    match metric.WhichOneof("data"):
        case "gauge":
            _collect_numbers(metric, metric.gauge.data_points, Kind.gauge, shared, points)
        case "sum":
            _collect_numbers(metric, metric.sum.data_points, _kind(metric.sum), shared, points)
        case _:
            for _ in range(_count(metric)):
                points.reject(NOT_A_NUMBER)


def _kind(data: Sum) -> Kind:
    if data.aggregation_temporality == AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA:
        return Kind.delta
    return Kind.counter if data.is_monotonic else Kind.total


def _collect_numbers(
    metric: Metric,
    numbers: Iterable[NumberDataPoint],
    kind: Kind,
    shared: dict[str, str] | str,
    points: Points,
) -> None:
    name, unit = metric.name, metric.unit
    bare: int | str | None = None  # the series of points without attributes, looked up once
    for number in numbers:
        slot: int | str
        if isinstance(shared, str):
            slot = shared
        elif number.attributes:
            own = _labels(number.attributes, points)
            slot = (
                own if isinstance(own, str) else points.slot(name, unit, kind, _merge(shared, own))
            )
        else:
            bare = points.slot(name, unit, kind, shared) if bare is None else bare
            slot = bare
        _collect_number(number, slot, points)


def _collect_number(number: NumberDataPoint, slot: int | str, points: Points) -> None:
    form = number.WhichOneof("value")
    if number.flags & _NO_VALUE_FLAG:
        points.reject(NOTHING_RECORDED)
    elif form is None:
        points.reject(NO_VALUE)
    elif number.time_unix_nano == 0:
        points.reject(NO_TIME)
    else:
        value = number.as_double if form == "as_double" else float(number.as_int)
        points.add(slot, min(number.time_unix_nano, MAX_TIME), value)


def _merge(shared: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    labels = dict(shared)
    for key, value in own.items():
        before = labels.get(key)
        if before is not None and before != value:
            labels[f"resource.{key}"] = before
        labels[key] = value
    return labels


def _labels(attributes: Sequence[KeyValue], points: Points) -> dict[str, str] | str:
    """Return the labels, or the reason why there are none."""
    if len(attributes) > points.rules.max_labels:
        return points.rules.too_many_labels
    try:
        labels = {attribute.key: _text(attribute.value) for attribute in attributes}
    except Refused as refused:
        return str(refused)
    return labels if len(labels) == len(attributes) else TWICE


def _text(value: AnyValue) -> str:
    form = value.WhichOneof("value")
    if form == "string_value":
        return value.string_value
    rendered = _plain(value, MAX_NESTING)
    return rendered if isinstance(rendered, str) else json.dumps(rendered, separators=(",", ":"))


def _plain(value: AnyValue, depth: int) -> object:
    """Return what `value` is in JSON."""
    if depth == 0:
        raise Refused(f"an attribute's value nests deeper than {MAX_NESTING}")
    form = value.WhichOneof("value")
    if form == "array_value":
        return [_plain(item, depth - 1) for item in value.array_value.values[:MAX_LABEL_VALUE]]
    if form == "kvlist_value":
        pairs = value.kvlist_value.values[:MAX_LABEL_VALUE]  # more than fit in a label
        return {pair.key: _plain(pair.value, depth - 1) for pair in pairs}
    if form == "bytes_value":
        return base64.b64encode(value.bytes_value).decode()
    return "" if form is None else getattr(value, form)
