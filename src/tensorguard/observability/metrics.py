"""Prometheus metrics of one app. Labels are route templates, never raw paths: they stay bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from tensorguard import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The registry of one app and the metrics that every app has."""

    def __init__(self, app: str) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tensorguard_http_requests",
            "HTTP requests by route template and status.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "tensorguard_http_request_seconds",
            "Time from request to last byte of the response.",
            ("method", "route"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "tensorguard_http_requests_in_flight",
            "Requests being answered now.",
            registry=self.registry,
        )
        build = Gauge(
            "tensorguard_build_info",
            "Version and role.",
            ("app", "version"),
            registry=self.registry,
        )
        build.labels(app, __version__).set(1)

    def render(self) -> bytes:
        """Return the exposition text."""
        return generate_latest(self.registry)
