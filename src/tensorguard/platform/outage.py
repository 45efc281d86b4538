"""A database that is away or too busy is a 503: the request was not done, and a retry is right.

The commit of a request runs after its endpoint, so this is the one place that sees it fail.
"""

from __future__ import annotations

import logging
from typing import Final

from fastapi import FastAPI, Request, Response
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from tensorguard.asgi.problems import problem

log = logging.getLogger(__name__)

RETRY_SECONDS: Final = 5


def _outage(_: Request, error: Exception) -> Response:
    log.error("the database failed a request", exc_info=error)
    return problem(
        503,
        code="database_unavailable",
        detail="The database did not answer in time; nothing was stored.",
        remedy="Try again after the time given in Retry-After.",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def install(app: FastAPI) -> None:
    """Make `app` answer 503 when the database fails a request."""
    for error in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(error, _outage)
