"""OTLP metrics (opentelemetry-proto 1.x), point by point: numbers, histograms and summaries.

Labels of a series are the attributes of the resource, then `otel.scope.name` and
`otel.scope.version`, then the attributes of the point. Where a point sets the same attribute as its
resource to another value, the resource's is kept as `resource.<name>`, so that no two series become
one.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol, TypeVar

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
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    SummaryDataPoint,
)

from tensorguard.errors import MalformedInput
from tensorguard.platform.telemetry.points import NOT_FINITE, Kind, Points, Refused
from tensorguard.wire.telemetry import MAX_LABEL_VALUE, MAX_TIME, Answer

MAX_NESTING = 8  # of an attribute's value; a label is a word, not a document

MAX_BUCKETS = 1024  # of one histogram, and quantiles of one summary

EMPTY_METRIC: Final = "its metric has no kind of data that is known here"
TOO_MANY_BUCKETS: Final = f"it has more than {MAX_BUCKETS} buckets"
BAD_BUCKETS: Final = "its bucket counts do not fit its bounds"
NOTHING_RECORDED: Final = "it says that no value was recorded"
NO_TIME: Final = "it has no time"
NO_VALUE: Final = "it has no value"
TWICE: Final = "an attribute is given twice"

DELTA: Final = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
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
            labels = shared_labels(resource, scope, points)
            for metric in scope.metrics:
                _collect_metric(_Surroundings(resource, scope, metric, labels), points)


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


def shared_labels(
    resource: ResourceMetrics, scope: ScopeMetrics, points: Points
) -> dict[str, str] | str:
    """Return the labels of all points of a scope, or the reason why there are none."""
    labels = own_labels(resource.resource.attributes, points)
    if isinstance(labels, dict):
        if scope.scope.name:
            labels["otel.scope.name"] = scope.scope.name
        if scope.scope.version:
            labels["otel.scope.version"] = scope.scope.version
    return labels


Point = NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint | SummaryDataPoint


@dataclass(frozen=True, slots=True)
class _Surroundings:
    """What a data point stands in."""

    resource: ResourceMetrics
    scope: ScopeMetrics
    metric: Metric
    labels: dict[str, str] | str

    def letter(self, point: Point) -> bytes:
        """Return an export of this one point."""
        request = ExportMetricsServiceRequest()
        resource = request.resource_metrics.add()
        resource.resource.CopyFrom(self.resource.resource)
        scope = resource.scope_metrics.add()
        scope.scope.CopyFrom(self.scope.scope)
        metric = scope.metrics.add(name=self.metric.name, unit=self.metric.unit)
        kind = self.metric.WhichOneof("data")
        if kind is not None:
            source, data = getattr(self.metric, kind), getattr(metric, kind)
            if kind not in {"gauge", "summary"}:
                data.aggregation_temporality = source.aggregation_temporality
            if kind == "sum":
                data.is_monotonic = source.is_monotonic
            data.data_points.add().CopyFrom(point)
        return request.SerializeToString()

    def slot(self, point: Point, kind: Kind, points: Points) -> int | str:
        """Return the series of a point, or the reason why there is none."""
        if isinstance(self.labels, str):
            return self.labels
        own = own_labels(point.attributes, points)
        if isinstance(own, str):
            return own
        return points.slot(self.metric.name, self.metric.unit, kind, merge(self.labels, own))


def _collect_metric(around: _Surroundings, points: Points) -> None:
    metric = around.metric
    match metric.WhichOneof("data"):
        case "gauge":
            _numbers(around, metric.gauge.data_points, Kind.gauge, points)
        case "sum":
            sums = metric.sum
            kind = kind_of_sum(sums.aggregation_temporality, monotonic=sums.is_monotonic)
            _numbers(around, sums.data_points, kind, points)
        case "histogram":
            temporal = _temporal(metric.histogram, Kind.histogram, Kind.histogram_delta)
            _documents(around, metric.histogram.data_points, temporal, _histogram, points)
        case "exponential_histogram":
            exponential = metric.exponential_histogram
            temporal = _temporal(exponential, Kind.exponential, Kind.exponential_delta)
            _documents(around, exponential.data_points, temporal, _exponential, points)
        case "summary":
            _documents(around, metric.summary.data_points, Kind.summary, _summary, points)


class _Temporal(Protocol):
    aggregation_temporality: AggregationTemporality.ValueType


def _temporal(data: _Temporal, cumulative: Kind, delta: Kind) -> Kind:
    return delta if data.aggregation_temporality == DELTA else cumulative


def kind_of_sum(temporality: int, *, monotonic: bool) -> Kind:
    """Return the kind of a sum's series."""
    if temporality == DELTA:
        return Kind.delta
    return Kind.counter if monotonic else Kind.total


def _refusal(point: Point) -> str | None:
    if point.flags & _NO_VALUE_FLAG:
        return NOTHING_RECORDED
    return NO_TIME if point.time_unix_nano == 0 else None


def _numbers(
    around: _Surroundings, numbers: Iterable[NumberDataPoint], kind: Kind, points: Points
) -> None:
    for number in numbers:
        letter = partial(around.letter, number)
        form = number.WhichOneof("value")
        reason = _refusal(number) or (NO_VALUE if form is None else None)
        if reason is not None:
            points.reject(reason, letter)
            continue
        value = number.as_double if form == "as_double" else float(number.as_int)
        time = min(number.time_unix_nano, MAX_TIME)
        points.add(around.slot(number, kind, points), time, value, letter)


P = TypeVar("P", HistogramDataPoint, ExponentialHistogramDataPoint, SummaryDataPoint)


def _documents(
    around: _Surroundings,
    found: Iterable[P],
    kind: Kind,
    render: Callable[[P], Mapping[str, object]],
    points: Points,
) -> None:
    for point in found:
        letter = partial(around.letter, point)
        reason = _refusal(point)
        if reason is None:
            try:
                value = json.dumps(render(point), separators=(",", ":"), allow_nan=False)
            except Refused as refused:
                reason = str(refused)
            except ValueError:  # NaN or infinite
                reason = NOT_FINITE
        if reason is not None:
            points.reject(reason, letter)
            continue
        time = min(point.time_unix_nano, MAX_TIME)
        points.add_document(around.slot(point, kind, points), time, value, letter)


def _extremes(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> dict[str, object]:
    members = ("sum", "min", "max")
    return {name: getattr(point, name) for name in members if point.HasField(name)}  # type: ignore[arg-type]


def _histogram(point: HistogramDataPoint) -> dict[str, object]:
    bounds, counts = list(point.explicit_bounds), list(point.bucket_counts)
    if len(counts) > MAX_BUCKETS:
        raise Refused(TOO_MANY_BUCKETS)
    if len(counts) != (len(bounds) + 1 if bounds or counts else 0):
        raise Refused(BAD_BUCKETS)
    return {"count": point.count, **_extremes(point), "bounds": bounds, "counts": counts}


def _exponential(point: ExponentialHistogramDataPoint) -> dict[str, object]:
    sides = {"positive": point.positive, "negative": point.negative}
    if sum(len(side.bucket_counts) for side in sides.values()) > MAX_BUCKETS:
        raise Refused(TOO_MANY_BUCKETS)
    return {
        "count": point.count,
        **_extremes(point),
        "scale": point.scale,
        "zero_count": point.zero_count,
        "zero_threshold": point.zero_threshold,
        **{
            name: {"offset": side.offset, "counts": list(side.bucket_counts)}
            for name, side in sides.items()
        },
    }


def _summary(point: SummaryDataPoint) -> dict[str, object]:
    if len(point.quantile_values) > MAX_BUCKETS:
        raise Refused(TOO_MANY_BUCKETS)
    quantiles = [
        [pair.quantile, pair.value]
        for pair in point.quantile_values
        if not math.isnan(pair.value)  # a quantile of no observations
    ]
    return {"count": point.count, "sum": point.sum, "quantiles": quantiles}


def merge(shared: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """Return the labels of a point; where it contradicts its resource, both are kept."""
    labels = dict(shared)
    for key, value in own.items():
        before = labels.get(key)
        if before is not None and before != value:
            labels[f"resource.{key}"] = before
        labels[key] = value
    return labels


def own_labels(attributes: Sequence[KeyValue], points: Points) -> dict[str, str] | str:
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
