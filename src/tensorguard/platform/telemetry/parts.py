"""What the intake keeps between requests: counters, known series and partitions, and its limits."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter

from tensorguard.platform.telemetry.cache import KnownDays, SeriesCache
from tensorguard.platform.telemetry.points import FUTURE, Rules
from tensorguard.platform.telemetry.stores import PostgresSamples, SampleStore, SqliteSamples
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

    counters: SampleCounters
    store: SampleStore
    max_points: int
    max_labels: int
    max_age_days: int
    series: SeriesCache = field(default_factory=SeriesCache)
    days: KnownDays = field(default_factory=KnownDays)

    @classmethod
    def build(
        cls, settings: Settings, registry: CollectorRegistry, *, dialect: str
    ) -> TelemetryParts:
        """Return the parts for one database dialect."""
        days = KnownDays()
        return cls(
            counters=SampleCounters(registry),
            store=PostgresSamples(days) if dialect == "postgresql" else SqliteSamples(),
            max_points=settings.max_batch_points,
            max_labels=settings.max_labels,
            max_age_days=settings.max_sample_age_days,
            days=days,
        )

    def rules(self, now: datetime, device_id: str | None) -> Rules:
        """Return what is taken at `now` from one caller."""
        present = nanoseconds(now)
        return Rules(
            oldest=present - self.max_age_days * DAY_SECONDS * NANOSECONDS,
            newest=present + FUTURE,
            max_points=self.max_points,
            max_labels=self.max_labels,
            device_id=device_id,
        )
