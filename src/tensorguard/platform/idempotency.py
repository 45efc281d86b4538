"""A create with an `Idempotency-Key` happens once: sent again, it gets the first answer again.

The answer is stored in the transaction that did the work, so there is never one without the other;
of two at once the second waits for the first. A key belongs to one caller and to one method, path
and body: with others it is refused (422). Answers are kept for 24 hours. A request that failed is
not stored and may be sent again under its key.

A secret that is shown once is not stored: the repeated answer carries `null` in its place. A caller
that lost the first answer revokes the object and makes another under a new key.

    @router.post("", status_code=201)
    def create(body: NewThing, principal: ..., session: Database, once: Idempotency) -> Response:
        return once.answer(session, principal, lambda: ThingView.of(service.create(...)))
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import Depends, Request, Response
from pydantic import BaseModel
from sqlalchemy import delete, select, tuple_
from sqlalchemy.orm import Session

from tensorguard.errors import InputError
from tensorguard.platform.db.tables.people import IdempotencyRecord
from tensorguard.platform.db.upsert import insert_if_absent
from tensorguard.platform.principal import Principal
from tensorguard.platform.state import state_of

HEADER: Final = "idempotency-key"
REPLAYED: Final = "Idempotency-Replayed"
LIFE: Final = timedelta(hours=24)
PURGE_BATCH: Final = 100
MAX_STORED: Final = 64 * 1024  # bytes of an answer
_HARMLESS: Final = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class BadIdempotencyKey(InputError):
    code = "bad_idempotency_key"
    remedy = "Send 1 to 128 of A-Z, a-z, 0-9 and . _ : - such as a UUID."


class IdempotencyKeyReused(InputError):
    code = "idempotency_key_reused"
    status = 422
    remedy = "Use a fresh Idempotency-Key for each new request."


@dataclass(frozen=True, slots=True)
class IdempotentRequest:
    """The key of a request, if it has one, and the fingerprint of what it asks for."""

    key: str | None
    fingerprint: str
    now: datetime

    def answer(
        self,
        session: Session,
        principal: Principal,
        create: Callable[[], BaseModel],
        *,
        status: int = 201,
        shown_once: AbstractSet[str] = frozenset(),
    ) -> Response:
        """Do the work and answer, or repeat the stored answer.

        Members in `shown_once` are not stored. Raises `IdempotencyKeyReused`.
        """
        if self.key is None:
            return _json(create().model_dump_json().encode(), status)
        _purge(session, principal, self.key, self.now)
        if not insert_if_absent(session, IdempotencyRecord, self._claim(principal, status)):
            return self._replay(session, principal)
        made = create()
        stored = made.model_copy(update=dict.fromkeys(shown_once)).model_dump_json().encode()
        if len(stored) > MAX_STORED:
            raise InputError(f"an answer over {MAX_STORED} bytes cannot be kept for its key")
        record = session.get_one(IdempotencyRecord, self._id(principal), populate_existing=True)
        record.body = stored
        return _json(made.model_dump_json().encode(), status)

    def _id(self, principal: Principal) -> tuple[str, str, str | None]:
        return principal.tenant_id, principal.actor, self.key

    def _claim(self, principal: Principal, status: int) -> dict[str, object]:
        return {
            "tenant_id": principal.tenant_id,
            "actor": principal.actor,
            "key": self.key,
            "fingerprint": self.fingerprint,
            "status": status,
            "body": b"",
            "expires": self.now + LIFE,
        }

    def _replay(self, session: Session, principal: Principal) -> Response:
        record = session.get_one(IdempotencyRecord, self._id(principal), populate_existing=True)
        if record.fingerprint != self.fingerprint:
            raise IdempotencyKeyReused("this key was used for another request")
        response = _json(record.body, record.status)
        response.headers[REPLAYED] = "true"
        return response


async def idempotent_request(request: Request) -> IdempotentRequest:
    """Read the header. Raises `BadIdempotencyKey`."""
    key = request.headers.get(HEADER)
    if key is not None and not _HARMLESS.fullmatch(key):
        raise BadIdempotencyKey("the Idempotency-Key is empty, too long or has odd characters")
    body = await request.body()
    text = f"{request.method}\0{request.url.path}\0".encode()
    return IdempotentRequest(key, hashlib.sha256(text + body).hexdigest(), state_of(request).now())


Idempotency = Annotated[IdempotentRequest, Depends(idempotent_request)]


def _json(body: bytes, status: int) -> Response:
    return Response(body, status, media_type="application/json")


def _purge(session: Session, principal: Principal, key: str, now: datetime) -> None:
    table = IdempotencyRecord
    mine, over = table.tenant_id == principal.tenant_id, table.expires <= now
    this = (table.actor == principal.actor) & (table.key == key)
    session.execute(delete(table).where(mine, over, this))
    old = (
        select(table.actor, table.key)
        .where(mine, over)
        .order_by(table.expires)
        .limit(PURGE_BATCH)
        .with_for_update(skip_locked=True)
    )
    keys = session.execute(old).all()
    if keys:
        session.execute(delete(table).where(mine, tuple_(table.actor, table.key).in_(keys)))
