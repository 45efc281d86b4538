"""What the gateway counts. The label `model` holds names of loaded packs only: it stays bounded."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

from tensorguard.observability.metrics import Metrics
from tensorguard.serving.pool import PoolStatus

SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class ServingMetrics(Metrics):
    """The metrics of one gateway."""

    def __init__(self) -> None:
        super().__init__("serving")
        self.evaluations = Counter(
            "tensorguard_serving_requests",
            "Inference requests by model and outcome (ok, or the problem's code).",
            ("model", "outcome"),
            registry=self.registry,
        )
        self.evaluate_seconds = Histogram(
            "tensorguard_serving_evaluate_seconds",
            "Time that a worker spent on one ciphertext.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.queue_seconds = Histogram(
            "tensorguard_serving_queue_seconds",
            "Time that a request waited for a worker.",
            ("model",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self.bytes = Counter(
            "tensorguard_serving_ciphertext_bytes",
            "Bytes of ciphertext frames of inferences, by model and direction (in, out).",
            ("model", "direction"),
            registry=self.registry,
        )
        self.packs_refused = Counter(
            "tensorguard_serving_packs_refused",
            "Pack files that did not verify or load.",
            registry=self.registry,
        )
        self._packs = self._gauge("tensorguard_serving_packs", "Packs that are served.")
        self._alive = self._gauge("tensorguard_serving_workers", "Workers that are alive.")
        self._waiting = self._gauge("tensorguard_serving_queue_depth", "Requests that wait.")
        self.key_bytes = self._gauge(
            "tensorguard_serving_key_store_bytes", "Bytes of evaluation keys on disk."
        )
        self.deaths = Counter(
            "tensorguard_serving_worker_deaths",
            "Workers that ended since the start, by cause.",
            ("cause",),
            registry=self.registry,
        )

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, registry=self.registry)

    def observe(self, pool: PoolStatus, *, packs: int) -> None:
        """Take what is read when somebody looks."""
        self._packs.set(packs)
        self._alive.set(pool.alive)
        self._waiting.set(pool.waiting)
