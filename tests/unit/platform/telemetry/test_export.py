"""Samples leave as CSV and Parquet: the same rows in both."""

from __future__ import annotations

import csv
import io
import json

from support.platform import Platform
from support.telemetry import SECOND, at, device, samples, send
from tensorguard.platform.principal import Role

PATH = "/api/v1/telemetry/export"


def test_csv_and_parquet_have_the_same_rows(platform: Platform) -> None:
    from pyarrow import parquet

    headers, now = device(platform), at(platform.clock())
    text = {"name": "joint.mode", "value": "=1+1", "ts": now - SECOND, "labels": {"joint": "0"}}
    send(platform, headers, {"samples": [*samples(now, 50, joint="0"), text]})
    send(platform, device(platform, "arm-2"), {"samples": samples(now, 5, joint="1")})
    reader = platform.caller(Role.viewer)
    asked = {"label.joint": "0"}
    got = platform.client.get(PATH, headers=reader, params=asked)
    assert got.headers["content-type"] == "text/csv; charset=utf-8"
    rows = list(csv.DictReader(io.StringIO(got.text)))
    assert len(rows) == 51
    numbers = [row for row in rows if row["name"] == "joint.angle"]
    assert [float(row["value"]) for row in numbers] == [float(i) for i in range(50)]
    assert [int(row["ts"]) for row in numbers] == [now - (50 - i) * SECOND for i in range(50)]
    assert json.loads(numbers[0]["labels"]) == {"device": "arm-1", "joint": "0"}
    got = platform.client.get(PATH, headers=reader, params={**asked, "format": "parquet"})
    table = parquet.read_table(io.BytesIO(got.content)).to_pylist()
    assert len(table) == 51
    assert {row["document"] for row in table} == {None, '"=1+1"'}
    for wide, narrow in zip(table, rows, strict=True):
        assert wide["name"] == narrow["name"]
        assert (wide["value"] is None) == (narrow["value"] == "")
        assert wide["value"] is None or wide["value"] == float(narrow["value"])


def test_an_export_is_bounded_and_of_the_callers_tenant(platform: Platform) -> None:
    now = at(platform.clock())
    send(platform, device(platform), {"samples": samples(now)})
    stranger = platform.caller(Role.admin, tenant="other")
    got = platform.client.get(PATH, headers=stranger, params={"name": "joint.angle"})
    assert got.text.splitlines() == ["series_id,name,unit,kind,labels,ts,value,document"]
    reader = platform.caller(Role.viewer)
    for parameters in ({}, {"name": "a", "format": "xml"}, {"name": "a", "agg": "mean"}):
        assert platform.client.get(PATH, headers=reader, params=parameters).status_code == 400
    assert platform.client.get(PATH, headers=device(platform), params={}).status_code == 403
