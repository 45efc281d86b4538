"""Dead letters: samples that were refused for good, kept with the reason until they are sent again.

A letter is a request of its own. Sending it again is one transaction: the samples are stored and
the letter is gone, or nothing happened.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import datetime

import msgspec
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound, TensorGuardError, VerificationError
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.telemetry import Submission
from tensorguard.platform.principal import Principal
from tensorguard.platform.telemetry import readers, remote_write
from tensorguard.platform.telemetry.group import Batch, BatchKey, Sender
from tensorguard.platform.telemetry.parts import TelemetryParts
from tensorguard.platform.telemetry.points import NotPlain, Rules
from tensorguard.wire.telemetry import Answer


class NotReplayable(VerificationError):
    code = "submission_not_replayable"
    remedy = "It was too large to keep: let the device send it again, or drop it."


class StillRefused(VerificationError):
    code = "submission_still_refused"
    remedy = "Change what the reason names, such as a limit or a policy, or drop the submission."


class SubmissionRepository:
    """The letters of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def page(self, *, device_id: str | None, after: int, limit: int) -> Sequence[Submission]:
        """Return up to `limit` letters with an id above `after`, in order."""
        query = select(Submission).where(
            Submission.tenant_id == self._tenant_id, Submission.id > after
        )
        if device_id is not None:
            query = query.where(Submission.device_id == device_id)
        return list(self._session.scalars(query.order_by(Submission.id).limit(limit)))

    def get(self, submission_id: int, *, lock: bool = False) -> Submission:
        """Return one letter. Raises `NotFound`."""
        query = select(Submission).where(
            Submission.tenant_id == self._tenant_id, Submission.id == submission_id
        )
        found = self._session.scalar(query.with_for_update() if lock else query)
        if found is None:
            raise NotFound(f"there is no submission {submission_id}")
        return found

    def remove(self, submission_id: int) -> None:
        """Remove one letter."""
        self._session.execute(
            delete(Submission).where(
                Submission.tenant_id == self._tenant_id, Submission.id == submission_id
            )
        )


def replay(
    session: Session,
    parts: TelemetryParts,
    principal: Principal,
    submission_id: int,
    *,
    now: datetime,
) -> Answer:
    """Store what a letter holds under its first sender's name, and remove the letter.

    Raises `NotFound`, `NotReplayable` or `StillRefused`.
    """
    letters = SubmissionRepository(session, tenant_id=principal.tenant_id)
    letter = letters.get(submission_id, lock=True)
    if letter.payload is None:
        raise NotReplayable("this submission was too large to keep")
    reader = readers.for_media(letter.media)
    rules = parts.rules(now, letter.tenant_id, letter.device_id)
    points, _ = readers.read(reader, letter.payload, rules, parts.series)
    if points.rejected:
        raise StillRefused(f"it is refused again: {points.rejections[0].reason}")
    name = hashlib.sha256(f"submission\0{letter.id}".encode()).digest()
    batch = Batch(
        Sender(letter.tenant_id, letter.principal, letter.device_id),
        BatchKey(name, hashlib.sha256(letter.payload).digest()),
        points,
        letter.media,
        letter.payload,
        now,
    )
    (outcome,) = parts.intake.writer.write(session, [batch], now, careful=True)
    if isinstance(outcome, TensorGuardError):
        raise outcome
    letters.remove(letter.id)
    _audit(session, principal, letter, "submission.replayed", now)
    return outcome


def drop(session: Session, principal: Principal, submission_id: int, *, now: datetime) -> None:
    """Remove a letter for good. Raises `NotFound`."""
    letters = SubmissionRepository(session, tenant_id=principal.tenant_id)
    letter = letters.get(submission_id, lock=True)
    letters.remove(letter.id)
    _audit(session, principal, letter, "submission.dropped", now)


def _audit(
    session: Session, principal: Principal, letter: Submission, action: str, now: datetime
) -> None:
    AuditRepository(session, tenant_id=principal.tenant_id).append(
        actor=principal.actor,
        action=action,
        subject=f"submission:{letter.id}",
        now=now,
        details={"device_id": letter.device_id or "", "reason": letter.reason[:200]},
    )


def content(letter: Submission, rules: Rules) -> object:
    """Return what a letter holds, in JSON; None when it cannot be shown."""
    if letter.payload is None:
        return None
    try:
        if letter.media == readers.OUR_MEDIA:
            return msgspec.json.decode(letter.payload)
        if letter.media == readers.WRITE_MEDIA:
            return remote_write.shown(letter.payload, rules)
        message = ExportMetricsServiceRequest.FromString(letter.payload)
        return json_format.MessageToDict(message)
    except (ValueError, RecursionError, TensorGuardError, NotPlain):  # a whole batch may be odd
        return None
