"""Telemetry out: exact, bounded, and of one's own tenant only."""

from __future__ import annotations

import pytest

from support.platform import Platform
from support.telemetry import SECOND, at, device, samples, send
from tensorguard.platform.principal import Role


def get(platform: Platform, headers: dict, path: str, **parameters: object) -> dict:
    parameters = {name.replace("__", "."): value for name, value in parameters.items()}
    answer = platform.client.get(f"/api/v1/telemetry/{path}", headers=headers, params=parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()


def refused(platform: Platform, headers: dict, path: str, query: str) -> tuple[int, str]:
    answer = platform.client.get(f"/api/v1/telemetry/{path}?{query}", headers=headers)
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.status_code, answer.json()["code"]


@pytest.fixture
def reader(platform: Platform) -> dict[str, str]:
    """A viewer; arm-1 has written 60 samples of two joints, arm-2 five of one."""
    now = at(platform.clock())
    rows = [s for joint in "01" for s in samples(now, 60, joint=joint)]
    assert send(platform, device(platform, "arm-1"), {"samples": rows}).json()["accepted"] == 120
    assert send(platform, device(platform, "arm-2"), {"samples": samples(now, 5, joint="0")})
    return platform.caller(Role.viewer)


def test_series_are_found_by_name_and_labels(platform: Platform, reader: dict) -> None:
    everything = get(platform, reader, "series")
    assert len(everything["items"]) == 3
    assert everything["next_cursor"] is None
    found = get(platform, reader, "series", name="joint.angle", label__joint="0")
    assert [item["device_id"] for item in found["items"]] == ["arm-1", "arm-2"]
    found = get(platform, reader, "series", label__joint="0", label__device="arm-2")
    assert [item["labels"] for item in found["items"]] == [{"device": "arm-2", "joint": "0"}]
    assert get(platform, reader, "series", label__joint='0" OR 1=1')["items"] == []


def test_lists_page(platform: Platform, reader: dict) -> None:
    for path in ("series", "latest"):
        first = get(platform, reader, path, limit=2)
        rest = get(platform, reader, path, limit=2, cursor=first["next_cursor"])
        assert (len(first["items"]), len(rest["items"]), rest["next_cursor"]) == (2, 1, None)


def test_samples_come_in_order_of_time(platform: Platform, reader: dict) -> None:
    now = at(platform.clock())
    result = get(platform, reader, "query", name="joint.angle", label__device="arm-2")
    assert result["series"][0]["points"] == [[now - (5 - i) * SECOND, float(i)] for i in range(5)]
    span = {"start": now - 4 * SECOND, "end": now - 2 * SECOND}
    result = get(platform, reader, "query", label__device="arm-2", **span)
    assert result["series"][0]["points"] == [[now - 4 * SECOND, 1.0], [now - 3 * SECOND, 2.0]]
    text_span = {"start": "2030-01-01T11:59:56Z", "end": "2030-01-01T12:59:58+01:00"}
    assert get(platform, reader, "query", label__device="arm-2", **text_span) == result


@pytest.mark.parametrize(
    ("aggregation", "expected"),
    [
        ("min", [0.0, 20.0, 40.0]),
        ("max", [19.0, 39.0, 59.0]),
        ("mean", [9.5, 29.5, 49.5]),
        ("last", [19.0, 39.0, 59.0]),
        ("count", [20, 20, 20]),
    ],
)
def test_steps_are_aggregated(
    platform: Platform, reader: dict, aggregation: str, expected: list
) -> None:
    start = at(platform.clock()) - 60 * SECOND
    result = get(
        platform,
        reader,
        "query",
        label__device="arm-1",
        label__joint="1",
        start=start,
        end=start + 100 * SECOND,
        step="20s",
        agg=aggregation,
    )
    points = result["series"][0]["points"]
    assert [value for _, value in points] == expected
    assert [ts for ts, _ in points] == [start + i * 20 * SECOND for i in range(3)]


def test_count_over_a_whole_span_is_exact(platform: Platform, reader: dict) -> None:
    start = at(platform.clock(), -86_400)
    result = get(platform, reader, "query", name="joint.angle", start=start, agg="count")
    assert [one["points"] for one in result["series"]] == [[[start, n]] for n in (60, 60, 5)]


def test_latest_of_a_fleet(platform: Platform, reader: dict) -> None:
    items = get(platform, reader, "latest", name="joint.angle")["items"]
    assert [(item["series"]["device_id"], item["value"]) for item in items] == [
        ("arm-1", 59.0),
        ("arm-1", 59.0),
        ("arm-2", 4.0),
    ]
    assert {item["ts"] for item in items} == {at(platform.clock(), -1)}


def test_one_series_by_its_id(platform: Platform, reader: dict) -> None:
    series_id = get(platform, reader, "series", label__device="arm-2")["items"][0]["id"]
    result = get(platform, reader, "query", series_id=series_id, agg="count")
    assert result["series"][0]["points"][0][1] == 5


@pytest.mark.invariant("TG-I08")
def test_another_tenant_sees_nothing(platform: Platform, reader: dict) -> None:
    series_id = get(platform, reader, "series")["items"][0]["id"]
    other = platform.caller(Role.admin, tenant="globex")
    assert get(platform, other, "series") == {"items": [], "next_cursor": None}
    assert get(platform, other, "latest")["items"] == []
    assert get(platform, other, "query", name="joint.angle")["series"] == []
    assert refused(platform, other, "query", f"series_id={series_id}") == (404, "not_found")
    assert refused(platform, reader, "query", "series_id=999999") == (404, "not_found")
    cursor = get(platform, reader, "series", limit=1)["next_cursor"]
    assert refused(platform, other, "series", f"cursor={cursor}") == (400, "bad_cursor")


def test_the_same_series_in_two_tenants_is_two(platform: Platform, reader: dict) -> None:
    body = {"samples": samples(at(platform.clock()), 5, joint="0")}
    answer = send(platform, device(platform, "arm-2", tenant="globex"), body)
    assert answer.json()["accepted"] == 5
    other = platform.caller(Role.admin, tenant="globex")
    assert len(get(platform, other, "series")["items"]) == 1
    assert len(get(platform, reader, "series")["items"]) == 3


BAD_QUERIES = [
    "",
    "series_id=1&name=a",
    "series_id=x",
    "series_id=-1",
    "series_id=" + "9" * 30,
    "name=",
    "name=a&name=b",
    "name=a%00",
    "name=" + "a" * 256,
    "name=a&colour=red",
    "label.=x",
    "&".join(f"label.k{i}=v" for i in range(17)),
    "name=a&start=yesterday",
    "name=a&start=2&end=1",
    "name=a&start=" + "9" * 19,
    "name=a&agg=median",
    "name=a&agg=mean&step=0s",
    "name=a&agg=mean&step=1w",
    "name=a&step=1s",
    "name=joint.angle&agg=mean&step=1ns",
]


def test_a_bad_query_is_refused(platform: Platform, reader: dict) -> None:
    for query in BAD_QUERIES:
        status, code = refused(platform, reader, "query", query)
        assert status == 400, query
        assert code in {"bad_query", "bad_time", "query_too_large"}, query


def test_extreme_steps_and_times_are_answered(platform: Platform, reader: dict) -> None:
    huge = f"{2**63 - 1}"
    for extra in (
        {"start": "0", "end": huge},
        {"start": str(-(2**63))},
        {"start": "1", "end": "2"},
    ):
        result = get(
            platform, reader, "query", name="joint.angle", agg="count", step=f"{10**18}d", **extra
        )
        assert len(result["series"]) == 3


def test_a_mean_that_leaves_the_range_of_a_double_is_refused(
    platform: Platform, reader: dict
) -> None:
    now = at(platform.clock())
    rows = [{"name": "big", "value": 1.7e308, "ts": now - i * SECOND} for i in range(3)]
    send(platform, device(platform), {"samples": rows})
    assert refused(platform, reader, "query", "name=big&agg=mean") == (422, "aggregate_overflow")
    result = get(platform, reader, "query", name="big", agg="max")
    assert result["series"][0]["points"][0][1] == 1.7e308


def test_more_points_than_the_limit_are_refused_not_cut(platform: Platform, reader: dict) -> None:
    limit = platform.settings.max_query_points
    now = at(platform.clock())
    rows = [{"name": "many", "value": 1, "ts": now - i * 1000} for i in range(limit + 1)]
    send(platform, device(platform), {"samples": rows})
    assert refused(platform, reader, "query", "name=many") == (400, "query_too_large")
    result = get(platform, reader, "query", name="many", start=now - (limit - 1) * 1000)
    assert len(result["series"][0]["points"]) == limit


def test_a_device_may_not_read(platform: Platform) -> None:
    assert refused(platform, device(platform), "latest", "") == (403, "forbidden")
    assert refused(platform, {}, "latest", "") == (401, "unauthenticated")
