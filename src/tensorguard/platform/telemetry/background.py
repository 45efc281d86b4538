"""What runs while the app does: the writer, which stores what waits before the process ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tensorguard.platform.state import PlatformState


@asynccontextmanager
async def writer(state: PlatformState) -> AsyncIterator[None]:
    """End the intake's thread when the block ends."""
    try:
        yield
    finally:
        await asyncio.to_thread(state.telemetry.intake.stop)
