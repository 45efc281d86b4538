"""How many samples a second a device and a tenant may send: token buckets, bounded in number.

A bucket holds ten seconds of its rate, and never less than one batch: what is allowed at all is
never refused for ever. Each intake process counts for itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from tensorguard.errors import Throttled
from tensorguard.platform.telemetry.generations import Generations

BURST_SECONDS: Final = 10
MAX_WAIT: Final = 60  # seconds that Retry-After names at most
MAX_BUCKETS: Final = 20_000


class QuotaUsed(Throttled):
    code = "telemetry_quota"
    remedy = "Send fewer samples a second, or ask for a higher rate in the telemetry policy."


class _Bucket:
    __slots__ = ("at", "level")

    def __init__(self, level: float, at: float) -> None:
        self.level = level
        self.at = at


class Quotas:
    """Takes samples out of the buckets of their device and tenant."""

    def __init__(
        self, *, device_rate: int, tenant_rate: int, smallest: int, clock: Callable[[], float]
    ) -> None:
        self._device_rate = device_rate
        self._tenant_rate = tenant_rate
        self._smallest = smallest
        self._clock = clock
        self._buckets: Generations[tuple[str, str | None], _Bucket] = Generations(MAX_BUCKETS)
        self.policies: dict[str, tuple[int | None, int | None]] = {}  # (device, tenant) rates

    def take(self, tenant_id: str, device_id: str | None, samples: int) -> None:
        """Count `samples`. Raises `QuotaUsed` without counting any."""
        device_rate, tenant_rate = self.policies.get(tenant_id, (None, None))
        wanted: list[tuple[tuple[str, str | None], int, str]] = [
            ((tenant_id, None), tenant_rate or self._tenant_rate, "tenant")
        ]
        if device_id is not None:
            wanted.append(((tenant_id, device_id), device_rate or self._device_rate, "device"))
        filled = [(self._filled(key, rate), rate, whose) for key, rate, whose in wanted]
        for bucket, rate, whose in filled:
            if bucket.level < samples:
                wait = min(math.ceil((samples - bucket.level) / rate), MAX_WAIT)
                raise QuotaUsed(
                    f"this {whose} may send {rate} samples a second", retry_after=max(wait, 1)
                )
        for bucket, _, _ in filled:
            bucket.level -= samples

    def _filled(self, key: tuple[str, str | None], rate: int) -> _Bucket:
        now, most = self._clock(), max(rate * BURST_SECONDS, self._smallest)
        bucket = self._buckets.get(key)
        if bucket is None:
            bucket = _Bucket(most, now)
            self._buckets.put(key, bucket)
        else:
            bucket.level = min(bucket.level + (now - bucket.at) * rate, most)
            bucket.at = now
        return bucket
