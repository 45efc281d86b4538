"""A clock that tests turn, and what several key tests say alike."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from tensorguard.keys.provider import WrapContext

CONTEXT = WrapContext(purpose="database", tenant="acme")


class Clock:
    """Real time plus what a test added, as wall clock and as monotonic clock."""

    def __init__(self) -> None:
        self.ahead = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead.total_seconds()

    def turn(self, by: timedelta) -> None:
        self.ahead += by
