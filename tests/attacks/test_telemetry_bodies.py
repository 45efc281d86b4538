"""Telemetry bodies meant to break, exhaust or fool the intake: a 4xx problem, and nothing stored."""

from __future__ import annotations

import gzip
import json
import random
import time
import tracemalloc

import pytest

from support.platform import Platform
from support.telemetry import (
    NOTHING,
    PROTOBUF,
    SECOND,
    at,
    attribute,
    device,
    export,
    exported,
    otlp,
    samples,
    send,
    stored,
)

MUTATIONS = 500
JSON = "application/json"


def mutations(seed: int, body: bytes, count: int) -> list[bytes]:
    """Return `count` bodies, each with a few bytes changed, cut, doubled or moved."""
    generator = random.Random(seed)
    made = [b""]
    while len(made) < count + 1:
        mutant = bytearray(body)
        for _ in range(generator.randint(1, 4)):
            at_byte = generator.randrange(len(mutant)) if mutant else 0
            match generator.randrange(5):
                case 0 if mutant:
                    mutant[at_byte] ^= 1 << generator.randrange(8)
                case 1 if mutant:
                    mutant[at_byte] = generator.choice(b'\x00\xff\x7f\x80"{}[]0')
                case 2:
                    del mutant[at_byte:]
                case 3:
                    mutant[at_byte:at_byte] = generator.randbytes(generator.randint(1, 9))
                case _:
                    mutant[at_byte:at_byte] = mutant[at_byte : at_byte + 40]
        made.append(bytes(mutant))
    return made


@pytest.mark.parametrize("media", [PROTOBUF, JSON])
def test_500_mutated_exports_break_nothing(platform: Platform, media: str) -> None:
    headers, now = device(platform), at(platform.clock())
    body = otlp(now, 4).SerializeToString()
    if media == JSON:
        from google.protobuf import json_format

        body = json_format.MessageToJson(otlp(now, 4), indent=None).encode()
    statuses = set()
    for mutant in mutations(20, body, MUTATIONS):
        before = stored(platform)
        answer = export(platform, headers, mutant, content_type=media)
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, (answer.status_code, mutant)
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["remedy"]
            assert stored(platform) == before
    assert statuses == {200, 400}
    before = stored(platform)["sample"]
    exported(export(platform, headers, otlp(now - 100 * SECOND, 2).SerializeToString()))
    assert stored(platform)["sample"] == before + 2


def test_500_mutated_batches_break_nothing(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    body = json.dumps({"samples": samples(now, 3, joint="0"), "batch_id": "b"}).encode()
    statuses = set()
    for mutant in mutations(21, body, MUTATIONS):
        before = stored(platform)
        answer = send(platform, headers, mutant)
        statuses.add(answer.status_code)
        if answer.status_code != 200:
            assert 400 <= answer.status_code < 500, (answer.status_code, mutant)
            assert answer.headers["content-type"] == "application/problem+json"
            assert stored(platform) == before
    assert {200, 400} <= statuses <= {200, 400, 422}
    assert send(platform, headers, {"samples": samples(now - 50 * SECOND)}).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'"samples"',
        b"\xff\xfe",
        b"\xef\xbb\xbf{}",
        b'{"samples":[]}',
        b'{"samples":{}}',
        b'{"samples":null}',
        b'{"samples":[{"name":"a","value":NaN,"ts":1}]}',
        b'{"samples":[{"name":"a","value":Infinity,"ts":1}]}',
        b'{"samples":[{"name":"a","value":1,"ts":1}],"extra":1}',
        b'{"samples":[{"name":"a","value":1,"ts":1}]}{"samples":[]}',
        b'{"samples":[{"name":"\\ud800","value":1,"ts":1}]}',
        b'{"samples":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"samples":[{"name":"a","value":1,"ts":1,"labels":' + b'{"a":' * 50_000,
        b"[" * 1_000_000,
    ],
    ids=lambda body: repr(body[:48]),
)
def test_what_is_no_batch_is_refused(sqlite_platform: Platform, body: bytes) -> None:
    answer = send(sqlite_platform, device(sqlite_platform), body)
    assert answer.status_code == 400, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert stored(sqlite_platform) == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b'"resourceMetrics"',
        b'{"resourceMetrics":5}',
        b'{"resourceMetrics":[null]}',
        b'{"resourceMetrics":[{"resource":{"attributes":[{"key":"a","value":{"intValue":"x"}}]}}]}',
        b'{"resourceMetrics":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"resourceMetrics":[{"resource":{"attributes":[{"key":"a","value":'
        + b'{"arrayValue":{"values":[' * 200
        + b"]}}" * 200
        + b"}]}}]}",
        b"[" * 1_000_000,
    ],
    ids=lambda body: repr(body[:48]),
)
def test_what_is_no_export_in_json_is_refused(sqlite_platform: Platform, body: bytes) -> None:
    answer = export(sqlite_platform, device(sqlite_platform), body, content_type=JSON)
    assert answer.status_code == 400, answer.text
    assert stored(sqlite_platform) == NOTHING


@pytest.mark.parametrize("path", ["/v1/metrics", "/api/v1/telemetry/ingest"])
def test_gzip_bomb_is_refused_in_bounded_memory_and_time(
    sqlite_platform: Platform, path: str
) -> None:
    headers = device(sqlite_platform)
    limit = sqlite_platform.settings.max_batch_bytes
    member = gzip.compress(bytes(64 << 20), 9)
    bombs = [
        member,
        member * 8,
        gzip.compress(gzip.compress(bytes(1 << 20))),
        b"".join([member, b"x"]),
    ]
    tracemalloc.start()
    try:
        began = time.monotonic()
        for bomb in bombs:
            answer = sqlite_platform.client.post(
                path,
                content=bomb,
                headers={**headers, "content-type": JSON, "content-encoding": "gzip"},
            )
            assert answer.status_code in {400, 413}, answer.text
        assert time.monotonic() - began < 20
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 4 * limit
    assert stored(sqlite_platform) == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"not gzip",
        gzip.compress(b"{}", mtime=0)[:-4],
        gzip.compress(b"{}", mtime=0) + b"tail",
        b"\x1f\x8b",
    ],
    ids=["empty", "plain", "truncated", "trailing", "header"],
)
def test_broken_gzip_is_refused(sqlite_platform: Platform, body: bytes) -> None:
    headers = device(sqlite_platform)
    answer = export(sqlite_platform, headers, body, content_encoding="gzip")
    assert answer.status_code == 400, answer.text
    assert stored(sqlite_platform) == NOTHING


def test_ever_more_gzip_members_are_refused(sqlite_platform: Platform) -> None:
    body = gzip.compress(b"", mtime=0) * 10_000
    headers = device(sqlite_platform)
    assert export(sqlite_platform, headers, body, content_encoding="gzip").status_code == 400


@pytest.mark.parametrize("encoding", ["br", "deflate", "gzip, gzip", "x" * 1000])
def test_other_encodings_are_refused(sqlite_platform: Platform, encoding: str) -> None:
    headers = device(sqlite_platform)
    assert export(sqlite_platform, headers, b"", content_encoding=encoding).status_code == 415


@pytest.mark.parametrize(
    "media", ["text/plain", "application/x-protobuf2", "", "application/xml;application/json"]
)
def test_wrong_content_types_are_refused(sqlite_platform: Platform, media: str) -> None:
    headers, now = device(sqlite_platform), at(sqlite_platform.clock())
    answer = export(sqlite_platform, headers, otlp(now).SerializeToString(), content_type=media)
    assert answer.status_code == 415
    batch = json.dumps({"samples": samples(now)}).encode()
    assert send(sqlite_platform, headers, batch, content_type=media).status_code == 415
    assert stored(sqlite_platform) == NOTHING


def test_protobuf_sent_as_json_and_the_reverse_are_refused(sqlite_platform: Platform) -> None:
    headers, now = device(sqlite_platform), at(sqlite_platform.clock())
    binary = otlp(now).SerializeToString()
    assert export(sqlite_platform, headers, binary, content_type=JSON).status_code == 400
    assert export(sqlite_platform, headers, b'{"resourceMetrics":[]}').status_code == 400
    assert stored(sqlite_platform) == NOTHING


def test_a_hundred_thousand_labels_are_refused_and_the_rest_is_stored(platform: Platform) -> None:
    headers, now = device(platform), at(platform.clock())
    request = otlp(now, 1)
    point = (
        request.resource_metrics[0]
        .scope_metrics[0]
        .metrics[0]
        .gauge.data_points.add(time_unix_nano=now, as_double=1)
    )
    for i in range(100_000):
        attribute(point.attributes, f"k{i}", "v")
    began = time.monotonic()
    answer = exported(export(platform, headers, request.SerializeToString()))
    assert answer.partial_success.rejected_data_points == 1
    assert "more than 64 labels" in answer.partial_success.error_message
    many = {"name": "a", "value": 1, "ts": now, "labels": {f"k{i}": "v" for i in range(100_000)}}
    assert send(platform, headers, {"samples": [many]}).json()["rejected_total"] == 1
    assert time.monotonic() - began < 20
    assert stored(platform)["sample"] == stored(platform)["series"] == 1


def test_an_attribute_that_nests_without_end_is_refused(sqlite_platform: Platform) -> None:
    headers, now = device(sqlite_platform), at(sqlite_platform.clock())
    for depth in (9, 40, 2000):
        request = otlp(now, 1)
        points = request.resource_metrics[0].scope_metrics[0].metrics[0].gauge.data_points
        value = points[0].attributes.add(key="deep").value
        for _ in range(min(depth, 40)):
            value = value.array_value.values.add()
        body = request.SerializeToString()
        if depth > 40:
            body += b"\x0b" * depth  # group after group, never ended
        answer = export(sqlite_platform, headers, body)
        assert answer.status_code in {200, 400}
        if answer.status_code == 200:
            assert exported(answer).partial_success.rejected_data_points == 1
    assert stored(sqlite_platform)["sample"] == 0


def test_a_body_over_the_limit_is_refused_before_it_is_read(sqlite_platform: Platform) -> None:
    headers = device(sqlite_platform)
    limit = sqlite_platform.settings.max_batch_bytes
    assert send(sqlite_platform, headers, bytes(limit + 1)).status_code == 413
    plain = b'{"samples":[]}' + b" " * limit
    packed = gzip.compress(plain, mtime=0)
    assert send(sqlite_platform, headers, packed, content_encoding="gzip").status_code == 413
    assert stored(sqlite_platform) == NOTHING


def test_a_caller_without_credentials_is_refused_whatever_the_body(
    sqlite_platform: Platform,
) -> None:
    assert export(sqlite_platform, {}, bytes(1000)).status_code == 401
    assert export(sqlite_platform, {"Authorization": "Bearer x.y.z"}, b"").status_code == 401
    assert stored(sqlite_platform) == NOTHING


def test_a_device_cannot_write_as_another(platform: Platform) -> None:
    headers, now = device(platform, "arm-1"), at(platform.clock())
    forged = samples(now, 3, device="arm-2")
    assert send(platform, headers, {"samples": forged}).json()["rejected_total"] == 3
    request = otlp(now)
    attribute(request.resource_metrics[0].resource.attributes, "device", "arm-2")
    partial = exported(export(platform, headers, request.SerializeToString()))
    assert partial.partial_success.rejected_data_points == 3
    assert stored(platform)["sample"] == stored(platform)["series"] == 0


def test_a_batch_replayed_by_another_device_is_its_own(platform: Platform) -> None:
    body = json.dumps({"samples": samples(at(platform.clock()))}).encode()
    send(platform, device(platform, "arm-1"), body, idempotency_key="k")
    send(platform, device(platform, "arm-2"), body, idempotency_key="k")
    with platform.session() as session:
        from sqlalchemy import text

        owners = session.execute(text("SELECT device_id FROM series ORDER BY 1")).scalars().all()
    assert owners == ["arm-1", "arm-2"]  # never under the first one's name
