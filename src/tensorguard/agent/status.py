"""What an agent holds and what became of everything else, read from its spool."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

import msgspec

from tensorguard.agent.config import AgentConfig, AgentRunning, FolderLock
from tensorguard.agent.link import is_enrolled
from tensorguard.agent.spool import Level
from tensorguard.sdk.device import DeviceIdentity

NANOSECONDS: Final = 1_000_000_000


class PriorityStatus(msgspec.Struct, frozen=True):
    """Samples of one priority: recorded + replayed = spooled + acknowledged + refused + dropped."""

    spooled: int
    acknowledged: int
    refused: int
    dropped: int
    recorded: int


class Status(msgspec.Struct, frozen=True):
    """What `tensorguard agent status --json` prints."""

    folder: str
    device_id: str | None
    platform: str | None
    running: bool
    delivery: str | None
    delivery_since: str | None
    spooled: int
    spooled_bytes: int
    bound_bytes: int
    recorded: int
    replayed: int
    acknowledged: int
    dropped: int
    dead: int
    dead_lost: int
    discarded: int
    unreadable: int
    priorities: dict[str, PriorityStatus]


def status(config: AgentConfig) -> Status:
    """Return the state of the agent in a folder. Raises what opening the spool raises."""
    with config.open_spool() as spool:
        levels, tallies, notes = spool.levels(), spool.tallies(), spool.notes()
    text, at = notes.get("delivery", (None, 0))
    record = DeviceIdentity.load(config.identity).record if is_enrolled(config) else None
    total = {name: sum(getattr(level, name) for level in levels.values()) for name in _FIELDS}
    return Status(
        folder=str(config.folder),
        device_id=record.device_id if record else None,
        platform=record.platform_url if record else config.url,
        running=_running(config),
        delivery=text,
        delivery_since=_time(at) if text is not None else None,
        spooled=total["waiting"],
        spooled_bytes=total["bytes"] + tallies["dead_bytes"],
        bound_bytes=config.spool_bytes,
        recorded=total["recorded"],
        replayed=tallies["replayed"],
        acknowledged=total["acknowledged"],
        dropped=total["dropped"],
        dead=tallies["dead_rows"],
        dead_lost=tallies["dead_lost"],
        discarded=tallies["discarded"],
        unreadable=tallies["unreadable"],
        priorities={priority.name: _one(level) for priority, level in levels.items()},
    )


_FIELDS: Final = ("waiting", "bytes", "recorded", "acknowledged", "dropped")


def _one(level: Level) -> PriorityStatus:
    return PriorityStatus(
        spooled=level.waiting,
        acknowledged=level.acknowledged,
        refused=level.refused,
        dropped=level.dropped,
        recorded=level.recorded,
    )


def _running(config: AgentConfig) -> bool:
    try:
        FolderLock(config.folder).release()
    except AgentRunning:
        return True
    return False


def _time(at: int) -> str:
    return datetime.fromtimestamp(at // NANOSECONDS, UTC).isoformat()


def lines(found: Status) -> list[str]:
    """Return the status for people."""
    state = "running" if found.running else "not running"
    return [
        f"agent        {state}; {found.folder}",
        f"device       {found.device_id or 'not enrolled'} at {found.platform or 'no platform'}",
        f"delivery     {found.delivery or 'never tried'}"
        + (f", since {found.delivery_since}" if found.delivery_since else ""),
        f"spooled      {found.spooled} samples, {found.spooled_bytes} of {found.bound_bytes} bytes",
        f"acknowledged {found.acknowledged}",
        f"dropped      {found.dropped} by the bound",
        f"dead         {found.dead} refused for good; {found.discarded} discarded, {found.dead_lost} lost",
        f"unreadable   {found.unreadable} lines",
        *(
            f"  {name:<10} {one.spooled} spooled, {one.acknowledged} acknowledged, "
            f"{one.refused} refused, {one.dropped} dropped of {one.recorded} recorded"
            for name, one in found.priorities.items()
        ),
    ]
