"""The application factory: the composition root of the gateway. Gates run here, so none is missed."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Final

from fastapi import APIRouter, FastAPI

from tensorguard import __version__
from tensorguard.asgi import problems
from tensorguard.asgi.middleware import BodyLimit, RequestContext
from tensorguard.crypto.trust import TrustStore
from tensorguard.errors import TensorGuardError
from tensorguard.gates import Probes, Role, enforce_or_exit
from tensorguard.observability import logs
from tensorguard.serving import development, grants
from tensorguard.serving.catalogue import Catalogue
from tensorguard.serving.endpoints import router as serving
from tensorguard.serving.gateway import Gateway
from tensorguard.serving.grants import GrantVerifier
from tensorguard.serving.health import router as health
from tensorguard.serving.keystore import KeyStore
from tensorguard.serving.links import Launcher
from tensorguard.serving.local_workers import LocalLauncher, worker_arguments
from tensorguard.serving.metrics import ServingMetrics
from tensorguard.serving.pool import Death
from tensorguard.serving.slots import Limits
from tensorguard.serving.state import ServingState
from tensorguard.serving.workers import WorkerPool
from tensorguard.settings import Settings

log = logging.getLogger(__name__)

PUBLIC_ROUTES: Final = frozenset(
    {
        ("GET", "/health"),
        ("GET", "/ready"),
        ("GET", "/metrics"),
    }
)

ROUTERS: Final[tuple[APIRouter, ...]] = (health, serving)

SCAN_SECONDS: Final = 2.0  # between looks at the pack folder
SWEEP_SECONDS: Final = 60.0  # between looks for expired evaluation keys
KEEP_SECONDS: Final = 30 * 24 * 3600  # evaluation keys that nobody used for so long go
CACHE_SHARE: Final = 8  # loaded keys are a few times as large as their frames; the rest is work
BASE64_SLACK: Final = 4096  # the JSON around base64


def _trust_store(settings: Settings) -> str | None:
    try:
        TrustStore.from_folder(settings.need("trust_store"))
    except TensorGuardError as error:
        return f"{error}."
    return None


def _ray(settings: Settings) -> str | None:
    try:
        from tensorguard.serving import ray_workers
    except ImportError as error:
        return f"TG_SERVING_POOL is ray, but it cannot be loaded: {error}."
    return ray_workers.probe(settings.need("ray_address"))


PROBES: Final = Probes(trust_store=_trust_store, ray=_ray)


def _now() -> datetime:
    return datetime.now(UTC)


def create_app(settings: Settings | None = None, *, now: Callable[[], datetime] = _now) -> FastAPI:
    """Build the gateway. Exits with status 78 when a gate refuses."""
    chosen = Settings.from_environment() if settings is None else settings
    chosen = enforce_or_exit(
        development.complete(chosen), Role.serving, dataclasses.replace(PROBES, now=now)
    )
    logs.configure(chosen.log_level)
    state = _build(chosen, now)
    app = FastAPI(
        title="TensorGuardFlow serving",
        version=__version__,
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=lambda _: _lifespan(state),
    )
    app.state.serving = state
    problems.install(app)
    for router in ROUTERS:
        app.include_router(router)
    app.add_middleware(
        BodyLimit,
        default=chosen.max_body_bytes,
        by_prefix={
            "/v1/evaluation-keys": chosen.max_key_bytes,
            "/v1/models": chosen.max_ciphertext_bytes,
            "/v1/infer": chosen.max_ciphertext_bytes // 3 * 4 + BASE64_SLACK,
        },
    )
    app.add_middleware(RequestContext, metrics=state.metrics)
    return app


def _build(settings: Settings, now: Callable[[], datetime]) -> ServingState:
    metrics = ServingMetrics()
    trust_store = settings.need("trust_store")
    for cause in Death:
        metrics.deaths.labels(cause)  # a series that is absent looks like one that is unknown
    pool = WorkerPool(
        _launcher(settings),
        limits=Limits(
            workers=settings.max_workers,
            queue=settings.max_queue,
            seconds=settings.max_worker_seconds,
            memory_bytes=settings.max_worker_bytes,
            pack_bytes=settings.max_pack_bytes,
            reply_bytes=settings.max_ciphertext_bytes,
            cache_bytes=settings.max_worker_bytes // CACHE_SHARE,
            shared_bytes=settings.max_key_bytes if settings.serving_pool == "ray" else 0,
        ),
        trust_store=trust_store,
        on_death=lambda cause: metrics.deaths.labels(cause).inc(),
    )
    catalogue = Catalogue(
        settings.need("pack_dir"),
        trust_store,
        pool,
        max_packs=settings.max_packs,
        pack_bytes=settings.max_pack_bytes,
        on_refused=metrics.packs_refused.inc,
    )
    keys = KeyStore(
        settings.need("home") / "evaluation-keys",
        total_bytes=settings.max_key_store_bytes,
        tenant_keys=settings.max_tenant_keys,
        keep_seconds=KEEP_SECONDS,
        now=time.time,
    )
    verifier = GrantVerifier(
        grants.source(settings.need("grant_jwks")), now=now, monotonic=time.monotonic
    )
    gateway = Gateway(settings, pool, catalogue, keys, metrics)
    return ServingState(settings, metrics, verifier, pool, catalogue, keys, gateway)


def _launcher(settings: Settings) -> Launcher:
    arguments = worker_arguments(settings.moai_backend, threads=settings.native_threads)
    if settings.serving_pool == "ray":
        from tensorguard.serving.ray_workers import RayLauncher

        return RayLauncher(settings.need("ray_address"), arguments, cores=settings.native_threads)
    return LocalLauncher(arguments)


@contextlib.asynccontextmanager
async def _lifespan(state: ServingState) -> AsyncIterator[None]:
    """Start workers and load packs before the port opens; end the workers afterwards."""
    await state.pool.start()
    try:
        await state.catalogue.scan()
        tasks = [
            asyncio.create_task(_every(SCAN_SECONDS, state.catalogue.scan)),
            asyncio.create_task(_every(SWEEP_SECONDS, lambda: _sweep(state))),
        ]
        await _sweep(state)
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    finally:
        await state.pool.stop()


async def _sweep(state: ServingState) -> None:
    state.metrics.key_bytes.set(await asyncio.to_thread(state.keys.sweep))


async def _every(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Do `work` again and again; what goes wrong once is logged and tried again."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except (TensorGuardError, OSError) as error:
            log.warning("background work failed", extra={"why": str(error)})
