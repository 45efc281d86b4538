"""Alive, ready, metrics: three questions that an orchestrator asks, answered without guessing."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError

from tensorguard.errors import TensorGuardError
from tensorguard.keys import self_test
from tensorguard.observability.metrics import CONTENT_TYPE
from tensorguard.platform.db import served
from tensorguard.platform.state import PlatformState, state_of

router = APIRouter(tags=["health"])


@router.get("/health")
def health() -> dict[str, str]:
    """Say that the process answers."""
    return {"status": "alive"}


@router.get("/ready")
def ready(request: Request, response: Response) -> dict[str, object]:
    """Say whether requests can be served: 200 with every check ok, else 503."""
    state = state_of(request)
    checks = {"database": _database(state), "key_provider": _key_provider(state)}
    good = all(result == "ok" for result in checks.values())
    response.status_code = 200 if good else 503
    if not good:
        response.headers["Retry-After"] = "5"
    return {"status": "ready" if good else "not ready", "checks": checks}


@router.get("/metrics")
def metrics(request: Request) -> Response:
    """Return the Prometheus exposition."""
    return Response(state_of(request).metrics.render(), media_type=CONTENT_TYPE)


def _database(state: PlatformState) -> str:
    try:
        found = served.current(state.engine)
    except (SQLAlchemyError, OSError):
        return "unreachable"
    return "ok" if found == served.head() else "not at the newest migration"


def _key_provider(state: PlatformState) -> str:
    try:
        self_test.run(state.keys)
    except (TensorGuardError, OSError):
        return "unusable"
    return "ok"
