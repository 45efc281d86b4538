"""Routes of the Prometheus-compatible subset, in the form that Grafana's data source reads.

Grafana asks by GET or by POST with a form; both are the same here. Parameters that would change
nothing (`timeout`, `dedup` and the like) are passed over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Final
from urllib.parse import parse_qsl

import msgspec
from fastapi import APIRouter, Depends, Path, Request, Response

from tensorguard.errors import MalformedInput
from tensorguard.platform.auth import require
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.telemetry import promql
from tensorguard.platform.telemetry.prometheus import (
    MAX_LISTED,
    BadParameter,
    PrometheusReader,
    Values,
    duration,
    moment,
    over_range,
)
from tensorguard.platform.telemetry.promql import QueryUnsupported, Selector
from tensorguard.wire.telemetry import MAX_LABEL_KEY, NANOSECONDS

router = APIRouter(prefix="/prometheus/api/v1", tags=["prometheus"])

MAX_PARAMETERS: Final = 64
Reader = Annotated[Principal, Depends(require(Scope.telemetry_read))]


async def _form(request: Request) -> bytes:
    return await request.body() if request.method == "POST" else b""


class Parameters:
    """What was asked, from the query string and, by POST, from the form."""

    def __init__(self, request: Request, form: Annotated[bytes, Depends(_form)]) -> None:
        try:
            pairs = parse_qsl(form.decode(), max_num_fields=MAX_PARAMETERS)
        except ValueError as error:
            raise MalformedInput("the form cannot be read") from error
        self._pairs = [*request.query_params.multi_items(), *pairs]

    def one(self, name: str) -> str | None:
        """Return one parameter."""
        found = self.all(name)
        return found[0] if found else None

    def all(self, name: str) -> list[str]:
        """Return a parameter that may come often."""
        return [value for key, value in self._pairs if key == name]

    def query(self) -> Selector | float:
        """Return the parsed query."""
        text = self.one("query")
        if text is None:
            raise BadParameter("query is needed")
        return promql.parse(text)

    def selectors(self) -> list[Selector]:
        """Return what `match[]` selects; nothing stands for every series."""
        found: list[Selector] = []
        for text in self.all("match[]"):
            parsed = promql.parse(text)
            if isinstance(parsed, float):
                raise QueryUnsupported("match[] takes a selector")
            found.append(parsed)
        return found


Asked = Annotated[Parameters, Depends(Parameters)]


@router.get("/query")
@router.post("/query")
def query(request: Request, asked: Asked, principal: Reader, session: Database) -> Response:
    """Return the value of each matching series at one time."""
    state = state_of(request)
    wanted, time = asked.query(), moment(asked.one("time"), state.now())
    if isinstance(wanted, float):
        return _answer({"resultType": "scalar", "result": _pair(time, wanted)})
    reader = PrometheusReader(session, tenant_id=principal.tenant_id)
    found = over_range(reader, wanted, start=time, end=time, step=NANOSECONDS, max_points=1)
    result = [{"metric": one.metric, "value": _pair(*values[0])} for one, values in found]
    return _answer({"resultType": "vector", "result": result})


@router.get("/query_range")
@router.post("/query_range")
def query_range(request: Request, asked: Asked, principal: Reader, session: Database) -> Response:
    """Return the values of each matching series at each step."""
    state = state_of(request)
    wanted, step = asked.query(), duration(asked.one("step"))
    start, end = moment(asked.one("start"), None), moment(asked.one("end"), None)
    most = state.settings.max_query_points
    if isinstance(wanted, float):
        steps = range(start, min(end, start + (most - 1) * step) + 1, step)
        values = [(time, wanted) for time in steps]
        return _answer({"resultType": "matrix", "result": [_row({}, values)]})
    reader = PrometheusReader(session, tenant_id=principal.tenant_id)
    found = over_range(reader, wanted, start=start, end=end, step=step, max_points=most)
    result = [_row(one.metric, values) for one, values in found]
    return _answer({"resultType": "matrix", "result": result})


@router.get("/labels")
@router.post("/labels")
def labels(asked: Asked, principal: Reader, session: Database) -> Response:
    """Return the names of labels."""
    reader = PrometheusReader(session, tenant_id=principal.tenant_id)
    names = {name for one in asked.selectors() or [()] for name in reader.label_names(one)}
    return _answer(sorted(names)[:MAX_LISTED])


@router.get("/label/{label}/values")
def label_values(
    label: Annotated[str, Path(max_length=MAX_LABEL_KEY)],
    asked: Asked,
    principal: Reader,
    session: Database,
) -> Response:
    """Return the values of a label."""
    reader = PrometheusReader(session, tenant_id=principal.tenant_id)
    found = {
        value for one in asked.selectors() or [()] for value in reader.label_values(label, one)
    }
    return _answer(sorted(found)[:MAX_LISTED])


@router.get("/series")
@router.post("/series")
def series(asked: Asked, principal: Reader, session: Database) -> Response:
    """Return the labels of each matching series."""
    selectors = asked.selectors()
    if not selectors:
        raise BadParameter("match[] is needed")
    reader = PrometheusReader(session, tenant_id=principal.tenant_id)
    found = {row.id: row.metric for one in selectors for row in reader.find(one, limit=MAX_LISTED)}
    return _answer([found[number] for number in sorted(found)][:MAX_LISTED])


def _row(metric: Mapping[str, str], values: Values) -> dict[str, object]:
    return {"metric": metric, "values": [_pair(time, value) for time, value in values]}


def _pair(time: int, value: float) -> Sequence[float | str]:
    text = repr(value)
    return (time / NANOSECONDS, text.removesuffix(".0"))


def _answer(data: object) -> Response:
    return Response(
        msgspec.json.encode({"status": "success", "data": data}), media_type="application/json"
    )
