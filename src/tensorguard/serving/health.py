"""Alive, ready, metrics: three questions that an orchestrator asks, answered without guessing."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from tensorguard.errors import TensorGuardError
from tensorguard.observability.metrics import CONTENT_TYPE
from tensorguard.serving.state import ServingState, state_of

router = APIRouter(tags=["health"])


@router.get("/health")
async def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@router.get("/ready")
async def ready(request: Request, response: Response) -> dict[str, object]:
    """Say whether inferences can be served: 200 or 503, and what each check found.

    A pool that lost some of its workers still serves: only one without any is not ready.
    """
    state = state_of(request)
    pool = state.pool.status()
    checks = {
        "packs": "ok" if len(state.catalogue) else "none is loaded",
        "workers": "ok" if pool.alive else "none is alive",
        "grant_keys": await _grant_keys(state),
    }
    good = all(result == "ok" for result in checks.values())
    if pool.alive < pool.wanted:
        checks["workers"] = f"{pool.alive} of {pool.wanted} alive"
    response.status_code = 200 if good else 503
    if not good:
        response.headers["Retry-After"] = "2"
    return {"status": "ready" if good else "not ready", "checks": checks}


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    """Return the Prometheus exposition."""
    state = state_of(request)
    state.metrics.observe(state.pool.status(), packs=len(state.catalogue))
    return Response(state.metrics.render(), media_type=CONTENT_TYPE)


async def _grant_keys(state: ServingState) -> str:
    try:
        await state.grants.check()
    except TensorGuardError:
        return "not known"
    return "ok"
