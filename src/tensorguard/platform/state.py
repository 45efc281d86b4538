"""What one platform process holds: built once by the app factory, never a module global."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from fastapi import Request
from sqlalchemy import Engine
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.keys.provider import KeyProvider
from tensorguard.observability.metrics import Metrics
from tensorguard.platform.devices.limiter import FailureLimiter
from tensorguard.platform.keys.envelope import Envelope
from tensorguard.platform.secrets import Secrets
from tensorguard.platform.telemetry.parts import TelemetryParts
from tensorguard.platform.users.passwords import Passwords
from tensorguard.settings import Settings


@dataclass(frozen=True, slots=True)
class PlatformState:
    """The composition root's parts."""

    settings: Settings
    engine: Engine
    sessions: sessionmaker[Session]
    keys: KeyProvider
    envelope: Envelope
    secrets: Secrets
    metrics: Metrics
    now: Callable[[], datetime]
    telemetry: TelemetryParts
    passwords: Passwords = field(default_factory=Passwords)
    enrolment_failures: FailureLimiter = field(default_factory=FailureLimiter)


def state_of(request: Request) -> PlatformState:
    """Return the state of the app that answers `request`."""
    return cast("PlatformState", request.app.state.platform)
