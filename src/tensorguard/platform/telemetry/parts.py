"""What the intake keeps between requests: counters, what it knows to be committed, and its limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.platform.telemetry.cache import KnownDays, KnownSeries
from tensorguard.platform.telemetry.credentials import Credentials
from tensorguard.platform.telemetry.group import Check, GroupWriter
from tensorguard.platform.telemetry.intake import Admission, Intake
from tensorguard.platform.telemetry.points import FUTURE, Rules
from tensorguard.platform.telemetry.quotas import Quotas
from tensorguard.platform.telemetry.stores import (
    DOCUMENTS,
    SAMPLES,
    PostgresSamples,
    SqliteSamples,
)
from tensorguard.settings import Settings
from tensorguard.wire.telemetry import NANOSECONDS, Answer, nanoseconds

DAY_SECONDS = 86_400


class SampleCounters:
    """Samples by what became of them, counted after the commit."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._samples = Counter(
            "tensorguard_telemetry_samples",
            "Telemetry samples by outcome.",
            ("outcome",),
            registry=registry,
        )
        for outcome in ("accepted", "duplicate", "rejected"):
            self._samples.labels(outcome)

    def count(self, answer: Answer) -> None:
        """Count one committed batch."""
        self._samples.labels("accepted").inc(answer.accepted)
        self._samples.labels("duplicate").inc(answer.duplicates)
        self._samples.labels("rejected").inc(answer.rejected_total)


@dataclass(frozen=True, slots=True)
class TelemetryParts:
    """Built once by the app factory."""

    intake: Intake
    admission: Admission
    quotas: Quotas
    series: KnownSeries
    days: dict[str, KnownDays]
    credentials: Credentials
    max_points: int
    max_labels: int
    max_age_days: int
    retention: dict[str, int] = field(default_factory=dict)  # days, of tenants with a policy

    @classmethod
    def build(
        cls,
        settings: Settings,
        registry: CollectorRegistry,
        *,
        engine: Engine,
        sessions: sessionmaker[Session],
        check: Check,
        now: Callable[[], datetime],
    ) -> TelemetryParts:
        """Return the parts for one database."""
        series, days = KnownSeries(), {SAMPLES: KnownDays(), DOCUMENTS: KnownDays()}
        postgresql = engine.dialect.name == "postgresql"
        store = PostgresSamples(tuple(days.values())) if postgresql else SqliteSamples()
        return cls(
            intake=Intake(
                sessions,
                GroupWriter(store, series, days, check),
                registry,
                now=now,
                counted=SampleCounters(registry).count,
            ),
            admission=Admission(
                max_bytes=settings.max_intake_bytes, max_requests=settings.max_intake_requests
            ),
            quotas=Quotas(
                device_rate=settings.max_device_rate,
                tenant_rate=settings.max_tenant_rate,
                smallest=settings.max_batch_points,
                clock=time.monotonic,
            ),
            series=series,
            days=days,
            credentials=Credentials(),
            max_points=settings.max_batch_points,
            max_labels=settings.max_labels,
            max_age_days=min(settings.max_sample_age_days, settings.telemetry_retention_days),
        )

    def rules(self, now: datetime, tenant_id: str, device_id: str | None) -> Rules:
        """Return what is taken at `now` from one caller."""
        present = nanoseconds(now)
        days = min(self.max_age_days, self.retention.get(tenant_id, self.max_age_days))
        return Rules(
            oldest=present - days * DAY_SECONDS * NANOSECONDS,
            newest=present + FUTURE,
            max_points=self.max_points,
            max_labels=self.max_labels,
            tenant_id=tenant_id,
            device_id=device_id,
        )
