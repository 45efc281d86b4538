"""Devices that write telemetry, batches to send, and counts of what is stored."""

from __future__ import annotations

import struct
from datetime import datetime, timedelta

import httpx2
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from sqlalchemy import func, select

from support.platform import Platform
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.tables.people import ApiToken
from tensorguard.platform.db.tables.telemetry import IngestBatch, Latest, SampleRow, Series
from tensorguard.platform.principal import Role, Scope
from tensorguard.platform.secrets import random_token
from tensorguard.wire.telemetry import nanoseconds

TABLES = {"series": Series, "sample": SampleRow, "latest": Latest, "batch": IngestBatch}
SECOND = 1_000_000_000
PROTOBUF = "application/x-protobuf"


def device(platform: Platform, name: str = "arm-1", tenant: str = "acme") -> dict[str, str]:
    """Return the headers of a token that is bound to one device."""
    tenant_id = platform.tenant(tenant)
    user_id = platform.user(tenant_id, Role.admin, f"admin-{new_id()[:8]}")
    token, now = random_token("tgp"), platform.clock()
    row = ApiToken(
        id=new_id(),
        tenant_id=tenant_id,
        name="exporter",
        token_hash=platform.state.secrets.pepper(token),
        scopes=Scope.telemetry_write.value,
        created_by=user_id,
        device_id=name,
        created=now,
        expires=now + timedelta(days=300),
        last_used=None,
        revoked=None,
    )
    with platform.session() as session:
        session.add(row)
    return {"Authorization": f"Bearer {token}"}


def at(moment: datetime, seconds: float = 0) -> int:
    """Return nanoseconds since 1970."""
    return nanoseconds(moment) + round(seconds * SECOND)


def samples(now: int, count: int = 3, name: str = "joint.angle", **labels: str) -> list[dict]:
    """Return samples of the last `count` seconds, one series."""
    return [
        {"name": name, "value": float(i), "ts": now - (count - i) * SECOND, "labels": labels}
        for i in range(count)
    ]


def send(platform: Platform, headers: dict[str, str], body: object, **more: str) -> httpx2.Response:
    """Send our JSON; `_` in a header's name stands for `-`."""
    extra = {name.replace("_", "-"): value for name, value in more.items()}
    form = {"content": body} if isinstance(body, bytes) else {"json": body}
    extra.setdefault("content-type", "application/json")
    return platform.client.post("/api/v1/telemetry/ingest", headers={**headers, **extra}, **form)


def otlp(now: int, count: int = 3, metric: str = "joint.angle") -> ExportMetricsServiceRequest:
    """Return an export of one gauge with `count` points, as an SDK would send it."""
    request = ExportMetricsServiceRequest()
    resource = request.resource_metrics.add()
    attribute(resource.resource.attributes, "service.name", "arm")
    scope = resource.scope_metrics.add()
    scope.scope.name = "joints"
    gauge = scope.metrics.add(name=metric, unit="rad").gauge
    for i in range(count):
        point = gauge.data_points.add(time_unix_nano=now - (count - i) * SECOND, as_double=i)
        attribute(point.attributes, "joint", "0")
    return request


def attribute(attributes: object, key: str, value: str) -> None:
    """Add one string attribute."""
    attributes.add(key=key).value.string_value = value


def export(
    platform: Platform, headers: dict[str, str], body: bytes, **more: str
) -> httpx2.Response:
    """Send OTLP in protobuf; `_` in a header's name stands for `-`."""
    extra = {name.replace("_", "-"): value for name, value in more.items()}
    extra.setdefault("content-type", PROTOBUF)
    return platform.client.post("/v1/metrics", headers={**headers, **extra}, content=body)


def exported(response: httpx2.Response) -> ExportMetricsServiceResponse:
    """Return the answer of an export that was taken."""
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == PROTOBUF
    return ExportMetricsServiceResponse.FromString(response.content)


def stored(platform: Platform) -> dict[str, int]:
    """Return the number of rows of each telemetry table."""
    with platform.session() as session:
        return {
            name: session.scalar(select(func.count()).select_from(table))
            for name, table in TABLES.items()
        }


NOTHING = dict.fromkeys(TABLES, 0)


def framed(number: int, payload: bytes) -> bytes:
    """Return a protobuf field with a length."""
    size, head = len(payload), bytearray([number << 3 | 2])
    while size > 0x7F:
        head.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes(head) + bytes([size]) + payload


def varint(value: int) -> bytes:
    """Return a protobuf varint of 64 bits."""
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes(out) + bytes([value])


def write_request(labels: dict[str, str], points: list[tuple[int, float]]) -> bytes:
    """Return a remote-write request of one series; times are milliseconds."""
    series = b"".join(
        framed(1, framed(1, key.encode()) + framed(2, value.encode()))
        for key, value in sorted(labels.items())
    )
    series += b"".join(
        framed(2, b"\x09" + struct.pack("<d", value) + b"\x10" + varint(time))
        for time, value in points
    )
    return framed(1, series)
