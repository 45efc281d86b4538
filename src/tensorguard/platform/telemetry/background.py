"""What runs while the app does: the writer, which stores what waits at the end, and the sweeps."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

from sqlalchemy.exc import SQLAlchemyError

from tensorguard.platform.state import PlatformState
from tensorguard.platform.telemetry import retention

log = logging.getLogger(__name__)
POLICY_SECONDS: Final = 60
SWEEPS: Final = 60  # policy rounds between two sweeps: an hour


def sweep(state: PlatformState) -> retention.Swept:
    """Remove what is over, in a transaction of its own."""
    with state.sessions.begin() as session:
        swept = retention.sweep(session, state.telemetry, state.settings, state.now())
    if swept.partitions:
        for days in state.telemetry.days.values():
            days.clear()
    log.info(
        "telemetry was swept",
        extra={
            "partitions": len(swept.partitions),
            "samples": swept.samples,
            "batches": swept.batches,
            "letters": swept.letters,
        },
    )
    return swept


def _load_policies(state: PlatformState) -> None:
    with state.sessions.begin() as session:
        retention.load_policies(session, state.telemetry)


async def _safely(state: PlatformState, task: Callable[[PlatformState], object]) -> None:
    try:
        await asyncio.to_thread(task, state)
    except (SQLAlchemyError, OSError):
        log.exception("telemetry policies could not be followed")


async def _keep_sweeping(state: PlatformState) -> None:
    for turn in itertools.count():
        await asyncio.sleep(POLICY_SECONDS)
        await _safely(state, sweep if turn % SWEEPS == 0 else _load_policies)


@asynccontextmanager
async def writer(state: PlatformState) -> AsyncIterator[None]:
    """End the intake's thread when the block ends."""
    try:
        yield
    finally:
        await asyncio.to_thread(state.telemetry.intake.stop)


@asynccontextmanager
async def sweeper(state: PlatformState) -> AsyncIterator[None]:
    """Follow the tenants' policies while the block runs."""
    await _safely(state, _load_policies)
    task = asyncio.create_task(_keep_sweeping(state), name="telemetry-sweeper")
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
