"""When a ring rotates, from its policy and its versions alone. Pure: it decides, others act."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from tensorguard.errors import InputError
from tensorguard.keys.provider import KeyInfo, KeyState

SHORTEST: Final = timedelta(minutes=1)
LONGEST: Final = timedelta(days=3650)
AHEAD: Final = 24  # a version is published a 24th of the period before it is used


class BadPolicy(InputError):
    code = "key_policy"
    status = 422
    remedy = "Give a period and an overlap of 60 to 315,360,000 seconds, or null for none."


@dataclass(frozen=True, slots=True)
class Policy:
    """A fresh version every `period`; a replaced one is retired `overlap` later. None is never."""

    period: timedelta | None = None
    overlap: timedelta | None = None

    def __post_init__(self) -> None:
        for span in (self.period, self.overlap):
            if span is not None and not SHORTEST <= span <= LONGEST:
                raise BadPolicy("the period or the overlap is too short or too long")


@dataclass(frozen=True, slots=True)
class Use:
    """When a version came into use, and when the next one replaced it."""

    activated: datetime
    replaced: datetime | None = None


@dataclass(frozen=True, slots=True)
class Due:
    """What is to be done with a ring now."""

    stage: bool = False
    rotate: bool = False
    retire: tuple[int, ...] = ()


def due(
    policy: Policy,
    versions: Sequence[KeyInfo],
    history: Mapping[int, Use],
    *,
    needed: Collection[int] = (),
    now: datetime,
) -> Due:
    """Return what the policy asks for at `now`; nothing of a disabled ring.

    `needed` are versions under which something is still sealed: they are not retired.
    """
    if any(info.disabled for info in versions):
        return Due()
    active = next((info for info in versions if info.state is KeyState.active), None)
    pending = any(info.state is KeyState.pending for info in versions)
    stage = rotate = False
    use = history.get(active.version) if active is not None else None
    if policy.period is not None and use is not None and use.replaced is None:
        ends = use.activated + policy.period
        rotate = now >= ends
        stage = not rotate and not pending and now >= ends - policy.period / AHEAD
    retire = tuple(
        info.version
        for info in versions
        if info.state is KeyState.decrypt_only
        and info.version not in needed
        and policy.overlap is not None
        and (was := history.get(info.version)) is not None
        and was.replaced is not None
        and now >= was.replaced + policy.overlap
    )
    return Due(stage=stage, rotate=rotate, retire=retire)
