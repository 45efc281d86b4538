"""Routes of failed submissions: listed and shown to readers, replayed and dropped by operators."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from pydantic import BaseModel

from tensorguard.platform.auth import require
from tensorguard.platform.db.tables.telemetry import Submission
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.platform.telemetry import bodies, letters
from tensorguard.platform.telemetry.letters import SubmissionRepository

router = APIRouter(prefix="/api/v1/submissions", tags=["submissions"])

Reader = Annotated[Principal, Depends(require(Scope.telemetry_read))]
Operator = Annotated[Principal, Depends(require(Scope.devices_write))]
SubmissionId = Annotated[int, Path(ge=1, le=2**62)]


class SubmissionView(BaseModel):
    """What was refused, of whom, when and why."""

    id: int
    device_id: str | None
    principal: str
    media: str
    received: datetime
    reason: str
    replayable: bool

    @classmethod
    def of(cls, row: Submission) -> SubmissionView:
        """Return the view of a row."""
        return cls(
            id=row.id,
            device_id=row.device_id,
            principal=row.principal,
            media=row.media,
            received=row.received,
            reason=row.reason,
            replayable=row.payload is not None,
        )


class SubmissionDetail(SubmissionView):
    """The same with what was sent; null when it was too large to keep."""

    content: object = None


@router.get("")
def submissions(
    principal: Reader,
    session: Database,
    paging: Paging,
    device_id: Annotated[str | None, Query(max_length=36)] = None,
) -> Page[SubmissionView]:
    """List what was refused for good, oldest first."""
    window = paging.window(principal, f"submissions/{device_id or ''}")
    rows = SubmissionRepository(session, tenant_id=principal.tenant_id).page(
        device_id=device_id, after=int(window.after or 0), limit=window.limit + 1
    )
    return window.page(rows, view=SubmissionView.of, position=lambda row: str(row.id))


@router.get("/{submission_id}")
def submission(
    submission_id: SubmissionId, request: Request, principal: Reader, session: Database
) -> SubmissionDetail:
    """Show one submission and what it holds."""
    state = state_of(request)
    row = SubmissionRepository(session, tenant_id=principal.tenant_id).get(submission_id)
    rules = state.telemetry.rules(state.now(), row.tenant_id, row.device_id)
    content = letters.content(row, rules)
    return SubmissionDetail(**SubmissionView.of(row).model_dump(), content=content)


@router.post("/{submission_id}/replay")
def replay(
    submission_id: SubmissionId, request: Request, principal: Operator, session: Database
) -> Response:
    """Store what a submission holds under its first sender's name."""
    state = state_of(request)
    answer = letters.replay(session, state.telemetry, principal, submission_id, now=state.now())
    return Response(msgspec.json.encode(answer), media_type=bodies.JSON)


@router.delete("/{submission_id}", status_code=204)
def drop(
    submission_id: SubmissionId, request: Request, principal: Operator, session: Database
) -> None:
    """Remove a submission for good."""
    letters.drop(session, principal, submission_id, now=state_of(request).now())
