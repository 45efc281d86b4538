"""Every error leaves as RFC 9457 problem+json with code, remedy and request id; nothing else does."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tensorguard.errors import TensorGuardError, Unavailable
from tensorguard.observability import request_ids

log = logging.getLogger(__name__)
MEDIA_TYPE = "application/problem+json"
MAX_DETAIL = 2000  # characters; a detail is for a person

_HTTP_REMEDIES = {
    400: "Correct the request and send it again.",
    404: "Check the path.",
    405: "Use a method that the Allow header names.",
    413: "Send less at a time.",
}


def problem(
    status: int,
    *,
    code: str,
    detail: str,
    remedy: str,
    headers: dict[str, str] | None = None,
    members: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document; `members` extend it (RFC 9457, section 3.2)."""
    document = {
        **(members or {}),
        "type": f"urn:tensorguard:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail[:MAX_DETAIL],
        "code": code,
        "remedy": remedy,
        "request_id": request_ids.current.get(),
    }
    body = json.dumps(document, ensure_ascii=True).encode()
    return Response(body, status, headers=headers, media_type=MEDIA_TYPE)


def _ours(_: Request, error: Exception) -> Response:
    if not isinstance(error, TensorGuardError):
        raise error
    headers: dict[str, str] = {}
    if isinstance(error, Unavailable):
        headers["Retry-After"] = str(error.retry_after)
    if error.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = "Bearer"
    detail = str(error)
    if error.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request failed", exc_info=error)
        detail = "The server could not do this."
    return problem(
        error.status,
        code=error.code,
        detail=detail,
        remedy=error.remedy,
        headers=headers,
        members=getattr(error, "members", None),
    )


def _framework(_: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    return problem(
        error.status_code,
        code=HTTPStatus(error.status_code).name.lower(),
        detail=str(error.detail),
        remedy=_HTTP_REMEDIES.get(error.status_code, "Correct the request and send it again."),
        headers=dict(error.headers or {}),
    )


def _validation(_: Request, error: Exception) -> Response:
    if not isinstance(error, RequestValidationError):
        raise error
    faults = [
        f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
        for fault in error.errors()[:8]
    ]
    return problem(
        422,
        code="malformed",
        detail="; ".join(faults),
        remedy="Send the members that the API description names, with values of their types.",
    )


def _unexpected(_: Request, error: Exception) -> Response:
    log.error("unexpected error", exc_info=error)
    return problem(
        500,
        code="internal",
        detail="The server could not do this.",
        remedy="Report this with the request id.",
    )


def install(app: FastAPI) -> None:
    """Make `app` answer every error with a problem document."""
    app.add_exception_handler(TensorGuardError, _ours)
    app.add_exception_handler(HTTPException, _framework)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(Exception, _unexpected)
