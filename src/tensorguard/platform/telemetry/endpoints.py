"""Routes that read telemetry."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import StreamingResponse

from tensorguard.platform.auth import require
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.telemetry import bodies, queries, service
from tensorguard.platform.telemetry.export import Export, as_csv, as_parquet
from tensorguard.platform.telemetry.repository import SeriesRepository
from tensorguard.platform.telemetry.views import LatestPage, QueryResult, SeriesPoints, SeriesView

router = APIRouter(tags=["telemetry"])


EXPORTS: Final = {
    "csv": ("text/csv; charset=utf-8", as_csv),
    "parquet": ("application/vnd.apache.parquet", as_parquet),
}
Reader = Annotated[Principal, Depends(require(Scope.telemetry_read))]


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
def latest(request: Request, principal: Reader, session: Database, paging: Paging) -> Response:
    """List the newest sample of each series that matches `name=` and `label.x=`."""
    matchers = queries.matchers(request.query_params.multi_items(), beside=queries.PAGE_PARAMETERS)
    window = paging.window(principal, "telemetry/latest")
    repository = SeriesRepository(session, tenant_id=principal.tenant_id)
    rows = repository.latest(matchers, after=int(window.after or 0), limit=window.limit + 1)
    shown = rows[: window.limit]
    more = len(rows) > window.limit
    cursor = window.cursor(str(shown[-1].series.id)) if more else None
    return _json(LatestPage(items=shown, next_cursor=cursor))


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


@router.get("/api/v1/telemetry/export")
def export(request: Request, principal: Reader, session: Database) -> Response:
    """Stream the samples of one series or of all that match, as CSV or Parquet."""
    state = state_of(request)
    parameters = request.query_params.multi_items()
    asked = queries.range_query(parameters, now=state.now(), known=queries.EXPORT_PARAMETERS)
    form = request.query_params.get("format", "csv")
    if form not in EXPORTS:
        raise queries.BadQuery(f"format must be one of: {', '.join(EXPORTS)}")
    media, render = EXPORTS[form]
    wanted = Export.of(
        session, state.sessions, principal.tenant_id, asked, state.settings.max_export_points
    )
    name = {"Content-Disposition": f'attachment; filename="telemetry.{form}"'}
    return StreamingResponse(render(wanted), media_type=media, headers=name)


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=bodies.JSON)
