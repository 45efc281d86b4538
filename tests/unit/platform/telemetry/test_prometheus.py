"""Grafana's questions: selectors at a time and over a range, labels, values, series."""

from __future__ import annotations

import pytest

from support.platform import Platform
from support.telemetry import SECOND, at, device, samples, send
from tensorguard.platform.principal import Role

PATH = "/prometheus/api/v1"


@pytest.fixture
def reader(platform: Platform) -> dict:
    headers, now = device(platform), at(platform.clock())
    for joint in "01":
        send(platform, headers, {"samples": samples(now, 60, joint=joint)})
    other = {"name": "temperature", "value": 20.5, "ts": now, "unit": "Cel"}
    text = {"name": "mode", "value": "idle", "ts": now}
    send(platform, headers, {"samples": [other, text]})
    return platform.caller(Role.viewer)


def ask(platform: Platform, reader: dict, path: str, **parameters: object) -> object:
    answer = platform.client.get(f"{PATH}/{path}", headers=reader, params=parameters)
    assert answer.status_code == 200, answer.text
    assert answer.json()["status"] == "success"
    return answer.json()["data"]


def test_an_instant_query_gives_the_newest_value(platform: Platform, reader: dict) -> None:
    now = platform.clock().timestamp()
    data = ask(platform, reader, "query", query='{"joint.angle",joint="1"}', time=now)
    assert data == {
        "resultType": "vector",
        "result": [
            {
                "metric": {"__name__": "joint.angle", "device": "arm-1", "joint": "1"},
                "value": [now, "59"],
            }
        ],
    }
    late = ask(platform, reader, "query", query="temperature", time=now + 299)
    assert late["result"][0]["metric"]["__unit__"] == "Cel"
    assert ask(platform, reader, "query", query="temperature", time=now + 300)["result"] == []
    assert ask(platform, reader, "query", query="mode", time=now)["result"] == []


def test_a_range_holds_each_value_until_the_next(platform: Platform, reader: dict) -> None:
    now = int(platform.clock().timestamp())
    data = ask(
        platform, reader, "query_range", query='{"joint.angle",joint="0"}',
        start=now - 30, end=now + 320, step="10",
    )  # fmt: skip
    values = dict(data["result"][0]["values"])
    assert values[now - 30] == "30"
    assert values[now - 10] == "50"
    assert values[now] == "59"  # of a second ago
    assert values[now + 290] == "59"
    assert now + 300 not in values
    posted = platform.client.post(
        f"{PATH}/query_range",
        headers={**reader, "content-type": "application/x-www-form-urlencoded"},
        content=f"query=temperature&start={now}&end={now + 60}&step=1m",
    )
    assert posted.json()["data"]["result"][0]["values"] == [[now, "20.5"], [now + 60, "20.5"]]


def test_all_four_matchers(platform: Platform, reader: dict) -> None:
    now = platform.clock().timestamp()

    def joints(query: str) -> list[str]:
        result = ask(platform, reader, "query", query=query, time=now)["result"]
        return [row["metric"].get("joint", "") for row in result]

    assert joints('{__name__="joint.angle"}') == ["0", "1"]
    assert joints('{__name__=~"joint.*", joint!="0"}') == ["1"]
    assert joints('{__name__=~".+", joint=~"0|7"}') == ["0"]
    assert joints('{__name__=~".+", joint!~"0|1"}') == [""]
    assert joints('{"joint.angle", absent=""}') == ["0", "1"]
    assert joints('{"joint.angle", joint=~"[1]"}') == ["1"]


def test_labels_values_and_series(platform: Platform, reader: dict) -> None:
    assert ask(platform, reader, "labels") == ["__name__", "device", "joint"]
    assert ask(platform, reader, "label/joint/values") == ["0", "1"]
    assert ask(platform, reader, "label/__name__/values", **{"match[]": '{joint="1"}'}) == [
        "joint.angle"
    ]
    found = ask(platform, reader, "series", **{"match[]": "temperature"})
    assert found == [{"__name__": "temperature", "device": "arm-1", "__unit__": "Cel"}]


def test_grafanas_health_check_is_answered(platform: Platform, reader: dict) -> None:
    data = ask(platform, reader, "query", query="1+1", time=5)
    assert data == {"resultType": "scalar", "result": [5.0, "2"]}


@pytest.mark.parametrize(
    ("path", "parameters"),
    [
        ("query", {}),
        ("query", {"query": "rate(up[5m])"}),
        ("query", {"query": "up offset 5m"}),
        ("query", {"query": "{}"}),
        ("query", {"query": '{a=~".*"}'}),
        ("query", {"query": '{a=~"("}'}),
        ("query", {"query": '{a=~"(a)\\\\1"}'}),
        ("query", {"query": 'up{a="b"'}),
        ("query", {"query": "up{a=b}"}),
        ("query", {"query": "u" * 5000}),
        ("query", {"query": "a\0b"}),
        ("query", {"query": "up", "time": "yesterday"}),
        ("query", {"query": "up", "time": "1e40"}),
        ("query", {"query": "up", "time": "nan"}),
        ("query_range", {"query": "up", "start": "1", "end": "2"}),
        ("query_range", {"query": "up", "start": "1", "end": "2", "step": "0"}),
        ("query_range", {"query": "up", "start": "2", "end": "1", "step": "1"}),
        ("query_range", {"query": "up", "start": "0", "end": "100000", "step": "1"}),
        ("series", {}),
    ],
)
def test_what_is_not_understood_is_refused(
    sqlite_platform: Platform, path: str, parameters: dict
) -> None:
    answer = sqlite_platform.client.get(
        f"{PATH}/{path}", headers=sqlite_platform.caller(), params=parameters
    )
    assert answer.status_code == 400, answer.text
    assert answer.json()["remedy"]


def test_another_tenant_sees_nothing_and_a_device_may_not_read(
    platform: Platform, reader: dict
) -> None:
    stranger = platform.caller(Role.admin, tenant="other")
    assert ask(platform, stranger, "labels") == ["__name__"]
    assert ask(platform, stranger, "label/__name__/values") == []
    now = platform.clock().timestamp()
    assert ask(platform, stranger, "query", query='{__name__=~".+"}', time=now)["result"] == []
    refused = platform.client.get(f"{PATH}/labels", headers=device(platform))
    assert refused.status_code == 403


def test_more_series_than_the_limit_are_refused(platform: Platform) -> None:
    now = at(platform.clock())
    rows = [{"name": "many", "value": 1, "ts": now, "labels": {"n": str(n)}} for n in range(101)]
    send(platform, device(platform), {"samples": rows})
    answer = platform.client.get(
        f"{PATH}/query", headers=platform.caller(), params={"query": "many", "time": now / SECOND}
    )
    assert answer.json()["code"] == "query_too_large"
