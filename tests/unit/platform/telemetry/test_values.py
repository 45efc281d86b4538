"""Values that are no numbers: text, truths, histograms; and percentiles of those that are."""

from __future__ import annotations

from support.platform import Platform
from support.telemetry import SECOND, at, device, export, exported, otlp, samples, send
from tensorguard.platform.principal import Role


def get(platform: Platform, path: str, **parameters: object) -> dict:
    answer = platform.client.get(
        f"/api/v1/telemetry/{path}", headers=platform.caller(Role.viewer), params=parameters
    )
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_text_and_truths_are_kept_as_they_are(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    rows = [
        {"name": "mode", "value": "idle", "ts": now - SECOND},
        {"name": "mode", "value": 'run "1"\n', "ts": now},
        {"name": "gripped", "value": True, "ts": now},
        {"name": "gripped", "value": False, "ts": now - SECOND},
        {"name": "gripped", "value": True, "ts": now},
        {"name": "mode", "value": "x" * 4097, "ts": now},
        {"name": "mode", "value": "a\0", "ts": now},
    ]
    answer = send(platform, headers, {"samples": rows}).json()
    assert (answer["accepted"], answer["duplicates"], answer["rejected_total"]) == (4, 1, 2)
    again = send(platform, headers, {"samples": rows[:3], "batch_id": "again"}).json()
    assert (again["accepted"], again["duplicates"]) == (0, 3)
    found = get(platform, "query", name="mode", end=now + 1)["series"][0]
    assert found["kind"] == "text"
    assert found["points"] == [[now - SECOND, "idle"], [now, 'run "1"\n']]
    latest = {row["series"]["name"]: row["value"] for row in get(platform, "latest")["items"]}
    assert latest == {"mode": 'run "1"\n', "gripped": True}
    refused = platform.client.get(
        "/api/v1/telemetry/query?name=mode&agg=mean", headers=platform.caller(Role.viewer)
    )
    assert refused.json()["code"] == "not_numbers"


def test_histograms_and_summaries_are_kept_whole(platform: Platform) -> None:
    now = at(platform.clock())
    request = otlp(now, 1)
    metrics = request.resource_metrics[0].scope_metrics[0].metrics
    classic = metrics.add(name="latency", unit="s").histogram
    classic.aggregation_temporality = 1
    classic.data_points.add(
        time_unix_nano=now, count=3, sum=1.5, min=0.1, max=1.0,
        explicit_bounds=[0.5], bucket_counts=[2, 1],
    )  # fmt: skip
    exponential = metrics.add(name="exp").exponential_histogram.data_points.add(
        time_unix_nano=now, count=2, scale=3, zero_count=1
    )
    exponential.positive.offset = 4
    exponential.positive.bucket_counts.extend([1])
    summary = metrics.add(name="sum").summary.data_points.add(time_unix_nano=now, count=2, sum=3.0)
    summary.quantile_values.add(quantile=0.5, value=1.5)
    partial = exported(export(platform, device(platform), request.SerializeToString()))
    assert partial.partial_success.rejected_data_points == 0
    found = {
        row["series"]["name"]: (row["series"]["kind"], row["value"])
        for row in get(platform, "latest")["items"]
    }
    assert found["latency"] == (
        "histogram_delta",
        {"count": 3, "sum": 1.5, "min": 0.1, "max": 1.0, "bounds": [0.5], "counts": [2, 1]},
    )
    assert found["exp"][0] == "exponential"
    assert found["exp"][1]["positive"] == {"offset": 4, "counts": [1]}
    assert found["sum"] == ("summary", {"count": 2, "sum": 3.0, "quantiles": [[0.5, 1.5]]})
    assert found["joint.angle"] == ("gauge", 0.0)


def test_percentiles_are_the_nearest_rank(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    rows = [{"name": "a", "value": (i * 37) % 200, "ts": now - i} for i in range(200)]
    send(platform, headers, {"samples": [*rows, *samples(now, 1)]})
    for percent, expected in (("p50", 99.0), ("p99", 197.0)):
        result = get(platform, "query", name="a", agg=percent, end=now + 1)
        assert result["series"][0]["points"][0][1] == expected
    steps = get(platform, "query", name="a", agg="p50", start=now - 199, end=now + 1, step=100)[
        "series"
    ][0]["points"]
    assert [step[0] for step in steps] == [now - 199, now - 99]
