"""Attacks on a real intake process: each refused or stored as specified, its memory bounded."""

from __future__ import annotations

import gzip
import json
import math
import socket
import time
from collections.abc import Iterator

import httpx
import pytest
from cramjam import snappy

from support import faults
from support.telemetry import PROTOBUF, otlp, varint, write_request
from tensorguard.bench.processes import rss_megabytes

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(120)]

GROWTH = 160.0  # MB over what it has when idle: ten bodies of the largest size, decoded
JSON = "application/json"


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.Site]:
    with faults.site(tmp_path_factory.mktemp("attacks")) as site:
        yield site


@pytest.fixture
def client(where: faults.Site) -> Iterator[httpx.Client]:
    """A sender; whatever it sends, the process stays up and small."""
    with httpx.Client(
        base_url=f"http://127.0.0.1:{where.platform.port}",
        headers={"authorization": f"Bearer {where.prepared.writer}"},
        trust_env=False,
        timeout=60,
    ) as sender:
        pid, before = where.platform.pid, rss_megabytes(where.platform.pid)
        yield sender
        assert where.platform.pid == pid
        assert rss_megabytes(pid) < before + GROWTH
        good = otlp(time.time_ns(), 3, metric=f"alive.{time.time_ns()}").SerializeToString()
        assert (
            sender.post("/v1/metrics", content=good, headers={"content-type": PROTOBUF}).status_code
            == 200
        )


def refused(answer: httpx.Response, *statuses: int) -> None:
    assert answer.status_code in statuses, answer.text[:300]
    assert answer.json()["remedy"]


def test_a_body_of_200_megabytes_is_refused_declared_or_not(
    client: httpx.Client, where: faults.Site
) -> None:
    size = 200 * 1024 * 1024
    with socket.create_connection(("127.0.0.1", where.platform.port)) as raw:
        raw.sendall(
            b"POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
            b"Authorization: Bearer " + where.prepared.writer.encode() + b"\r\n"
            b"Content-Length: " + str(size).encode() + b"\r\n\r\n"
        )
        assert raw.recv(64).startswith(b"HTTP/1.1 413")

    def chunks() -> Iterator[bytes]:
        for _ in range(200):
            yield bytes(1024 * 1024)

    try:
        answer = client.post("/v1/metrics", content=chunks(), headers={"content-type": PROTOBUF})
    except httpx.TransportError:
        pass  # it hung up while we were still sending
    else:
        refused(answer, 413)


def test_a_million_labels_are_one_refused_sample(client: httpx.Client) -> None:
    labels = {f"k{number}": "v" for number in range(1_000_000)}
    sample = {"name": "a", "value": 1, "ts": time.time_ns(), "labels": labels}
    body = json.dumps({"samples": [sample]}, separators=(",", ":")).encode()
    answer = client.post("/api/v1/telemetry/ingest", content=body, headers={"content-type": JSON})
    assert answer.json()["rejected"] == [{"index": 0, "reason": "it has more than 64 labels"}]
    body = write_request({"__name__": "a", **labels}, [(time.time_ns() // 10**6, 1.0)])
    sent = client.post(
        "/api/v1/write",
        content=bytes(snappy.compress_raw(body)),
        headers={"content-type": PROTOBUF, "content-encoding": "snappy"},
    )
    if sent.status_code == 204:
        assert sent.headers["x-prometheus-remote-write-samples-written"] == "0"
    else:
        refused(sent, 413)


def test_json_that_nests_without_end_is_refused(client: httpx.Client) -> None:
    for path in ("/api/v1/telemetry/ingest", "/v1/metrics"):
        for body in (b"[" * 5_000_000, b'{"samples":' * 500_000, b'{"a":' * 1_000_000):
            refused(client.post(path, content=body, headers={"content-type": JSON}), 400)


def test_nan_and_infinity_are_refused_by_name(client: httpx.Client) -> None:
    now = time.time_ns() // 10**6
    values = [(now, math.nan), (now + 1, math.inf), (now + 2, -math.inf), (now + 3, 1.0)]
    sent = client.post(
        "/api/v1/write",
        content=bytes(snappy.compress_raw(write_request({"__name__": "odd"}, values))),
        headers={"content-type": PROTOBUF},
    )
    assert sent.status_code == 204
    assert sent.headers["x-prometheus-remote-write-samples-written"] == "1"
    body = b'{"samples":[{"name":"a","value":NaN,"ts":1}]}'
    refused(
        client.post("/api/v1/telemetry/ingest", content=body, headers={"content-type": JSON}), 400
    )


def test_bombs_are_refused(client: httpx.Client) -> None:
    member = gzip.compress(bytes(256 << 20), 9, mtime=0)
    for path in ("/v1/metrics", "/api/v1/telemetry/ingest"):
        headers = {"content-type": JSON, "content-encoding": "gzip"}
        refused(client.post(path, content=member, headers=headers), 413)
    headers = {"content-type": PROTOBUF, "content-encoding": "snappy"}
    bombs = [
        bytes(snappy.compress_raw(bytes(256 << 20))),
        varint(2**32 - 1) + b"\x00a",
        varint(2**63) + b"\x00a",
        varint(10) + b"\xfe" * 50,
        b"",
    ]
    for bomb in bombs:
        refused(client.post("/api/v1/write", content=bomb, headers=headers), 400, 413)


def test_pressure_is_answered_with_503_and_never_with_memory(
    client: httpx.Client, where: faults.Site
) -> None:
    held = []
    try:
        for _ in range(8):  # each says that it brings 16 MB, and does not
            raw = socket.create_connection(("127.0.0.1", where.platform.port))
            raw.sendall(
                b"POST /v1/metrics HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\n"
                b"Authorization: Bearer " + where.prepared.writer.encode() + b"\r\n"
                b"Content-Length: 16000000\r\n\r\n"
            )
            held.append(raw)
        time.sleep(0.5)
        body = otlp(time.time_ns(), 3).SerializeToString()
        busy = client.post(
            "/v1/metrics",
            content=body + bytes(0),
            headers={"content-type": PROTOBUF, "idempotency-key": "pressed"},
        )
        assert busy.status_code in {200, 503}
        answers = []
        for raw in held:
            raw.settimeout(0.2)
            try:
                answers.append(raw.recv(4096))
            except TimeoutError:
                answers.append(b"")
        full = [answer for answer in answers if answer]
        assert len(full) >= 5  # 48 MB are admitted, no more
        assert all(answer.startswith(b"HTTP/1.1 503") for answer in full)
        assert all(b"retry-after: 1" in answer.lower() for answer in full)
    finally:
        for raw in held:
            raw.close()
    time.sleep(0.2)
