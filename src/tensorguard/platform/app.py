"""The application factory: the composition root of the platform. Gates run here, so none is missed."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from typing import Final

from fastapi import APIRouter, FastAPI
from sqlalchemy.orm import sessionmaker

from tensorguard import __version__
from tensorguard.asgi import problems
from tensorguard.asgi.middleware import BodyLimit, RequestContext
from tensorguard.gates import Probes, Role, enforce_or_exit
from tensorguard.keys import development, self_test
from tensorguard.keys.registry import open_provider
from tensorguard.observability import logs
from tensorguard.observability.metrics import Metrics
from tensorguard.platform import outage
from tensorguard.platform.audit.endpoints import router as audit
from tensorguard.platform.audit.periodic import periodic_heads
from tensorguard.platform.db import served
from tensorguard.platform.db.engine import open_engine
from tensorguard.platform.devices.endpoints import router as devices
from tensorguard.platform.health import router as health
from tensorguard.platform.identity.endpoints import router as certificates
from tensorguard.platform.keys.endpoints import router as keyrings
from tensorguard.platform.keys.envelope import Envelope
from tensorguard.platform.keys.periodic import key_policies
from tensorguard.platform.oauth.endpoints import router as oauth
from tensorguard.platform.packs.endpoints import router as packs
from tensorguard.platform.secrets import Secrets
from tensorguard.platform.state import PlatformState
from tensorguard.platform.telemetry import background as telemetry_background
from tensorguard.platform.telemetry.arrivals import router as arrivals
from tensorguard.platform.telemetry.callers import StillAllowed
from tensorguard.platform.telemetry.endpoints import router as telemetry
from tensorguard.platform.telemetry.parts import TelemetryParts
from tensorguard.platform.telemetry.policies import router as telemetry_policies
from tensorguard.platform.telemetry.prometheus_endpoints import router as prometheus
from tensorguard.platform.telemetry.submissions import router as submissions
from tensorguard.platform.tenant_secrets.endpoints import router as tenant_secrets
from tensorguard.platform.users.endpoints import router as people
from tensorguard.settings import Settings

PUBLIC_ROUTES: Final = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
        ("POST", "/oauth/token"),
        ("GET", "/.well-known/jwks.json"),
        ("POST", "/api/v1/enrolments/redeem"),
        ("POST", "/api/v1/auth/login"),
    }
)

ROUTERS: Final[tuple[APIRouter, ...]] = (
    arrivals,  # first: the router asks each in turn, and these come hundreds of times a second
    health,
    people,
    audit,
    telemetry,
    telemetry_policies,
    prometheus,
    submissions,
    devices,
    certificates,
    oauth,
    packs,
    keyrings,
    tenant_secrets,
)

Background = Callable[[PlatformState], AbstractAsyncContextManager[None]]
# what runs while the app does
BACKGROUND: Final[tuple[Background, ...]] = (
    periodic_heads,
    key_policies,
    telemetry_background.writer,
    telemetry_background.sweeper,
)

PROBES: Final = Probes(key_provider=self_test.probe, database_revision=served.probe)


def _now() -> datetime:
    return datetime.now(UTC)


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with AsyncExitStack() as stack:
        for task in BACKGROUND:
            await stack.enter_async_context(task(app.state.platform))
        yield


def create_app(settings: Settings | None = None, *, now: Callable[[], datetime] = _now) -> FastAPI:
    """Build the platform. Exits with status 78 when a gate refuses."""
    chosen = Settings.from_environment() if settings is None else settings
    chosen = enforce_or_exit(
        development.complete(chosen), Role.platform, dataclasses.replace(PROBES, now=now)
    )
    logs.configure(chosen.log_level)
    metrics = Metrics("platform")
    engine = open_engine(chosen)
    keys = open_provider(chosen)
    app = FastAPI(
        title="TensorGuardFlow platform",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=_lifespan,
    )
    sessions = sessionmaker(engine, expire_on_commit=False)
    app.state.platform = PlatformState(
        settings=chosen,
        engine=engine,
        sessions=sessions,
        keys=keys,
        envelope=Envelope(keys),
        secrets=Secrets(chosen.need("secret_key")),
        metrics=metrics,
        now=now,
        telemetry=TelemetryParts.build(
            chosen,
            metrics.registry,
            engine=engine,
            sessions=sessions,
            check=StillAllowed(now),
            now=now,
        ),
    )
    problems.install(app)
    outage.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(
        BodyLimit,
        default=chosen.max_body_bytes,
        by_prefix={
            "/v1/metrics": chosen.max_batch_bytes,
            "/api/v1/write": chosen.max_batch_bytes,
            "/api/v1/telemetry/ingest": chosen.max_batch_bytes,
            "/api/v1/packs": chosen.max_pack_bytes,
        },
    )
    app.add_middleware(RequestContext, metrics=metrics)
    return app
