"""Exporters as they are published: the OpenTelemetry Python SDK, and Debian's Prometheus."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from support import faults
from tensorguard.bench.processes import free_port

pytestmark = [pytest.mark.xdist_group("faults"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[faults.Site]:
    with faults.site(tmp_path_factory.mktemp("peers")) as site:
        yield site


@pytest.fixture
def reader(where: faults.Site) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{where.platform.port}",
        headers={"authorization": f"Bearer {where.prepared.reader}"},
        trust_env=False,
    ) as client:
        yield client


def test_an_unmodified_opentelemetry_exporter_delivers(
    where: faults.Site, reader: httpx.Client
) -> None:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
    from opentelemetry.sdk.resources import Resource

    exporter = OTLPMetricExporter(
        endpoint=f"http://127.0.0.1:{where.platform.port}/v1/metrics",
        headers={"authorization": f"Bearer {where.prepared.writer}"},
    )
    periodic = PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)
    resource = Resource.create({"service.name": "arm"})
    provider = MeterProvider(metric_readers=[periodic], resource=resource)
    meter = provider.get_meter("joints", "1.0")
    steps = meter.create_counter("steps", unit="1")
    angle = meter.create_gauge("angle", unit="rad")
    latency = meter.create_histogram("latency", unit="s")
    for turn in range(3):
        steps.add(5, {"joint": "0"})
        angle.set(0.5 * turn, {"joint": "0"})
        latency.record(0.02 * turn)
        assert provider.force_flush()
    provider.shutdown()
    found = {
        item["series"]["name"]: item
        for item in reader.get("/api/v1/telemetry/latest", params={"limit": 100}).json()["items"]
    }
    assert found["steps"]["value"] == 15
    assert found["steps"]["series"]["kind"] == "counter"
    assert found["angle"]["value"] == 1.0
    assert found["angle"]["series"]["unit"] == "rad"
    assert found["latency"]["value"]["count"] == 3
    labels = found["angle"]["series"]["labels"]
    assert labels["service.name"] == "arm"
    assert labels["otel.scope.name"] == "joints"
    assert labels["device"] == "bench-arm"
    points = reader.get(
        "/api/v1/telemetry/query",
        params={"name": "angle", "start": "0", "end": str(time.time_ns() + 10**9)},
    ).json()["series"][0]["points"]
    assert [value for _, value in points] == [0.0, 0.5, 1.0, 1.0][: len(points)]
    assert len(points) >= 3


class Target(BaseHTTPRequestHandler):
    """What Prometheus scrapes: a gauge that moves, and a counter of another kind of device."""

    scrapes = 0

    def do_GET(self) -> None:
        """Answer in the text format."""
        Target.scrapes += 1
        body = (
            f'robot_position{{joint="0"}} {Target.scrapes * 0.25}\n'
            f'robot_position{{joint="1"}} 0\n'
            f'disk_reads_total{{device="sda"}} {Target.scrapes}\n'
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "text/plain; version=0.0.4")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def prometheus(where: faults.Site, folder: Path) -> Iterator[str]:
    """Run Debian's Prometheus on loopback; end it by its process id."""
    target = ThreadingHTTPServer(("127.0.0.1", 0), Target)
    threading.Thread(target=target.serve_forever, daemon=True).start()
    port = free_port()
    config = folder / "prometheus.yml"
    config.write_text(
        f"""
global: {{scrape_interval: 500ms, scrape_timeout: 400ms}}
scrape_configs:
  - job_name: robot
    static_configs: [{{targets: ["127.0.0.1:{target.server_port}"]}}]
remote_write:
  - url: http://127.0.0.1:{where.platform.port}/api/v1/write
    authorization: {{credentials: "{where.prepared.writer}"}}
    queue_config: {{batch_send_deadline: 200ms}}
"""
    )
    log = (folder / "prometheus.log").open("wb")
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
        ],
        stdout=subprocess.DEVNULL,
        stderr=log,
    )
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()
        log.close()
        target.shutdown()
        target.server_close()


def test_a_real_prometheus_delivers_and_both_answer_a_range_alike(
    where: faults.Site, reader: httpx.Client, tmp_path: Path
) -> None:
    with prometheus(where, tmp_path) as url:
        deadline = time.monotonic() + 40
        while time.monotonic() < deadline:
            time.sleep(0.5)
            newest = reader.get("/api/v1/telemetry/latest", params={"name": "robot_position"})
            items = newest.json()["items"]
            if items and max(item["value"] for item in items) >= 5.0:  # twenty scrapes
                break
        else:
            raise AssertionError((tmp_path / "prometheus.log").read_text())
        end = int(time.time()) - 1
        asked = {"query": "robot_position", "start": end - 8, "end": end, "step": "1"}
        theirs = httpx.get(f"{url}/api/v1/query_range", params=asked, trust_env=False).json()
    ours = reader.get("/prometheus/api/v1/query_range", params=asked).json()
    assert theirs["data"]["resultType"] == ours["data"]["resultType"] == "matrix"

    def rows(answer: dict) -> dict:
        found = {}
        for row in answer["data"]["result"]:
            metric = {key: value for key, value in row["metric"].items() if key != "device"}
            found[tuple(sorted(metric.items()))] = row["values"]
        return found

    assert rows(ours) == rows(theirs)
    assert len(rows(ours)) == 2
    assert sum(len(values) for values in rows(ours).values()) >= 8
    reads = reader.get("/prometheus/api/v1/series", params={"match[]": "disk_reads_total"}).json()[
        "data"
    ]
    assert reads[0]["exported_device"] == "sda"
    assert reads[0]["device"] == "bench-arm"
