"""A database that is away or too busy is a 503: the request was not done, and a retry is right.

A value that no column can hold (a NUL in a path) is the caller's fault, a 400. The commit of a
request runs after its endpoint, so this is the one place that sees it fail.
"""

from __future__ import annotations

import logging
from typing import Final

from fastapi import FastAPI, Request, Response
from sqlalchemy.exc import DataError, InterfaceError, OperationalError
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


def _unstorable(_: Request, error: Exception) -> Response:
    log.warning("the database refused a value", extra={"kind": type(error).__name__})
    return problem(
        400,
        code="malformed",
        detail="A value has characters or a size that the database cannot hold.",
        remedy="Send text without NUL characters, and numbers within 64 bits.",
    )


def install(app: FastAPI) -> None:
    """Make `app` answer 503 when the database fails a request, 400 when it refuses a value."""
    app.add_exception_handler(DataError, _unstorable)
    for error in (OperationalError, InterfaceError, PoolTimeout):
        app.add_exception_handler(error, _outage)
