"""How long an evaluation is likely to take: what was measured before, never a guess."""

from __future__ import annotations

from typing import Final

WEIGHT: Final = 0.2  # of the newest measurement: a load that changes shows within a few requests


class Estimates:
    """The running mean of the seconds that each pack's evaluations take."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}

    def saw(self, pack_id: str, seconds: float) -> None:
        """Take one measurement."""
        old = self._seconds.get(pack_id, seconds)
        self._seconds[pack_id] = old + WEIGHT * (seconds - old)

    def of(self, pack_id: str) -> float:
        """Return the seconds of one evaluation; 0 where none was measured yet."""
        return self._seconds.get(pack_id, 0.0)

    def forget(self, pack_id: str) -> None:
        """Forget a pack that is no longer served."""
        self._seconds.pop(pack_id, None)
