"""What one gateway process holds: built once by the app factory, never a module global."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from fastapi import Request

from tensorguard.serving.catalogue import Catalogue
from tensorguard.serving.gateway import Gateway
from tensorguard.serving.grants import GrantVerifier
from tensorguard.serving.keystore import KeyStore
from tensorguard.serving.metrics import ServingMetrics
from tensorguard.serving.pool import Pool
from tensorguard.settings import Settings


@dataclass(frozen=True, slots=True)
class ServingState:
    """The composition root's parts."""

    settings: Settings
    metrics: ServingMetrics
    grants: GrantVerifier
    pool: Pool
    catalogue: Catalogue
    keys: KeyStore
    gateway: Gateway


def state_of(request: Request) -> ServingState:
    """Return the state of the app that answers `request`."""
    return cast("ServingState", request.app.state.serving)
