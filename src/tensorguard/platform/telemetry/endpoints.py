"""Routes of telemetry. A body is read before the transaction begins and stored within it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from google.protobuf import json_format

from tensorguard.errors import MalformedInput, Unauthenticated
from tensorguard.platform.auth import require
from tensorguard.platform.authentication import SessionCookie
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.telemetry import bodies, json_batches, otlp, queries, service
from tensorguard.platform.telemetry.points import Points
from tensorguard.platform.telemetry.repository import SeriesRepository
from tensorguard.platform.telemetry.views import LatestView, QueryResult, SeriesPoints, SeriesView
from tensorguard.wire.telemetry import IDEMPOTENCY_HEADER, MAX_BATCH_KEY, Answer

router = APIRouter(tags=["telemetry"])

OTLP_TYPES = frozenset({bodies.PROTOBUF, bodies.JSON})
JSON_TYPES = frozenset({bodies.JSON})


class BadBatchKey(MalformedInput):
    code = "bad_idempotency_key"
    remedy = f"Send 1 to {MAX_BATCH_KEY} printable ASCII characters, such as a UUID."


async def raw_body(request: Request) -> bytes:
    """Return the body as it came. A caller without any credential is refused before it is read."""
    cookie = SessionCookie.of(state_of(request).settings).name
    if "authorization" not in request.headers and cookie not in request.cookies:
        raise Unauthenticated("no credential came with the request")
    return await request.body()


RawBody = Annotated[bytes, Depends(raw_body)]
Writer = Annotated[Principal, Depends(require(Scope.telemetry_write))]
Reader = Annotated[Principal, Depends(require(Scope.telemetry_read))]


@router.post("/v1/metrics")
def export_metrics(
    raw: RawBody, request: Request, principal: Writer, session: Database
) -> Response:
    """Take an OTLP/HTTP export, protobuf or JSON; answer in the same encoding."""
    state = state_of(request)
    media = bodies.media_type(request.headers.get("content-type"), OTLP_TYPES)
    body = _plain(raw, request)
    parse = otlp.parse_protobuf if media == bodies.PROTOBUF else otlp.parse_json
    now = state.now()
    points = Points(state.telemetry.rules(now, principal.device_id))
    otlp.collect(parse(body), points)
    answer = Answer(0, 0)
    if points.seen:
        batch = service.BatchKey.of(body, _batch_key(request))
        answer = service.ingest(session, state.telemetry, principal, points, batch=batch, now=now)
    message = otlp.response(answer)
    if media == bodies.PROTOBUF:
        return Response(message.SerializeToString(), media_type=media)
    return Response(json_format.MessageToJson(message, indent=None), media_type=media)


@router.post("/api/v1/telemetry/ingest")
def ingest(raw: RawBody, request: Request, principal: Writer, session: Database) -> Response:
    """Take a batch of samples in our own JSON."""
    state = state_of(request)
    bodies.media_type(request.headers.get("content-type"), JSON_TYPES)
    body = _plain(raw, request)
    now = state.now()
    points = Points(state.telemetry.rules(now, principal.device_id))
    batch_id = json_batches.decode(body, points)
    batch = service.BatchKey.of(body, _batch_key(request, batch_id))
    answer = service.ingest(session, state.telemetry, principal, points, batch=batch, now=now)
    return _json(answer)


@router.get("/api/v1/telemetry/series")
def series(
    request: Request, principal: Reader, session: Database, paging: Paging
) -> Page[SeriesView]:
    """List the series that match `name=` and `label.x=`."""
    matchers = queries.matchers(request.query_params.multi_items(), beside=queries.PAGE_PARAMETERS)
    window = paging.window(principal, "telemetry/series")
    repository = SeriesRepository(session, tenant_id=principal.tenant_id)
    rows = repository.page(matchers, after=int(window.after or 0), limit=window.limit + 1)
    return window.page(rows, view=SeriesView.of, position=lambda row: str(row.id))


@router.get("/api/v1/telemetry/latest")
def latest(
    request: Request, principal: Reader, session: Database, paging: Paging
) -> Page[LatestView]:
    """List the newest sample of each series that matches `name=` and `label.x=`."""
    matchers = queries.matchers(request.query_params.multi_items(), beside=queries.PAGE_PARAMETERS)
    window = paging.window(principal, "telemetry/latest")
    repository = SeriesRepository(session, tenant_id=principal.tenant_id)
    rows = repository.latest(matchers, after=int(window.after or 0), limit=window.limit + 1)
    return window.page(rows, view=LatestView.of, position=lambda row: str(row[0].id))


@router.get("/api/v1/telemetry/query")
def query(request: Request, principal: Reader, session: Database) -> Response:
    """Return samples, or one aggregate per step, of one series or of all that match."""
    state = state_of(request)
    asked = queries.range_query(request.query_params.multi_items(), now=state.now())
    found = service.query(
        session, principal.tenant_id, asked, max_points=state.settings.max_query_points
    )
    result = QueryResult(
        start=asked.span.start,
        end=asked.span.end,
        step=asked.step,
        series=[SeriesPoints.of(one, points) for one, points in found],
    )
    return _json(result)


def _plain(raw: bytes, request: Request) -> bytes:
    limit = state_of(request).settings.max_batch_bytes
    return bodies.decompress(raw, request.headers.get("content-encoding"), limit=limit)


def _batch_key(request: Request, batch_id: str | None = None) -> str | None:
    key = request.headers.get(IDEMPOTENCY_HEADER, batch_id)
    if key is None:
        return None
    if not 0 < len(key) <= MAX_BATCH_KEY or not key.isascii() or not key.isprintable():
        raise BadBatchKey("the batch's key is empty, too long or not printable ASCII")
    return key


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=bodies.JSON)
