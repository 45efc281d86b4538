"""Routes that take telemetry: admitted, read, checked, and answered after the writer's commit.

They are called hundreds of times a second. Their dependencies are one, so their route calls it
itself instead of having it solved for each request; what FastAPI knows about the route is the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Annotated, Any, Final

import msgspec
from fastapi import APIRouter, Depends, Request, Response
from fastapi.routing import APIRoute
from google.protobuf import json_format

from tensorguard.errors import MalformedInput, Unauthenticated
from tensorguard.platform.principal import Principal
from tensorguard.platform.state import state_of
from tensorguard.platform.telemetry import bodies, otlp, readers
from tensorguard.platform.telemetry.callers import TelemetryWriter, sender_of
from tensorguard.platform.telemetry.group import Batch, BatchKey
from tensorguard.wire.telemetry import IDEMPOTENCY_HEADER, MAX_BATCH_KEY, Answer

OTLP_TYPES = frozenset({bodies.PROTOBUF, bodies.JSON})
JSON_TYPES = frozenset({bodies.JSON})
WRITE_TYPES = frozenset({bodies.PROTOBUF})
INLINE_BYTES = 256 * 1024  # a body that takes a few milliseconds to read
WRITTEN_HEADER: Final = "X-Prometheus-Remote-Write-Samples-Written"

admit_writer = TelemetryWriter()
Writer = Annotated[Principal, Depends(admit_writer)]


class BadBatchKey(MalformedInput):
    code = "bad_idempotency_key"
    remedy = f"Send 1 to {MAX_BATCH_KEY} printable ASCII characters, such as a UUID."


class ArrivalRoute(APIRoute):
    """A route whose endpoint takes the request and who sent it."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what answers a request: the caller is admitted first, always."""
        endpoint = self.endpoint

        async def handle(request: Request) -> Response:
            response: Response = await endpoint(request, await admit_writer(request))
            return response

        return handle


router = APIRouter(tags=["telemetry"], route_class=ArrivalRoute)


@router.post("/v1/metrics")
async def export_metrics(request: Request, principal: Writer) -> Response:
    """Take an OTLP/HTTP export, protobuf or JSON; answer in the same encoding."""
    media = bodies.media_type(request.headers.get("content-type"), OTLP_TYPES)
    found = await receive(request, principal, reader=readers.OTLP[media])
    message = otlp.response(found)
    if media == bodies.PROTOBUF:
        return Response(message.SerializeToString(), media_type=media)
    return Response(json_format.MessageToJson(message, indent=None), media_type=media)


@router.post("/api/v1/telemetry/ingest")
async def ingest(request: Request, principal: Writer) -> Response:
    """Take a batch of samples in our own JSON."""
    bodies.media_type(request.headers.get("content-type"), JSON_TYPES)
    return _json(await receive(request, principal, reader=readers.OUR_JSON))


@router.post("/api/v1/write", status_code=204)
async def remote_write(request: Request, principal: Writer) -> Response:
    """Take a Prometheus remote-write 1.0 request."""
    bodies.media_type(request.headers.get("content-type"), WRITE_TYPES)
    answer = await receive(request, principal, reader=readers.REMOTE_WRITE)
    written = answer.accepted + answer.duplicates
    return Response(status_code=204, headers={WRITTEN_HEADER: str(written)})


async def receive(request: Request, principal: Principal, *, reader: readers.Reader) -> Answer:
    """Admit, read, check and store the body of a request; return its answer after the commit."""
    state = state_of(request)
    parts, limit = state.telemetry, state.settings.max_batch_bytes
    declared = request.headers.get("content-length", "")
    # (1) there is room for it
    with parts.admission.admit(int(declared) if declared.isdigit() else limit) as ticket:
        raw = await request.body()
        # (2) it is what it says, within the limits
        plain = reader.plain(raw, request.headers.get("content-encoding"), limit)
        ticket.grow(len(plain) - ticket.size if len(plain) > ticket.size else 0)
        now = state.now()
        rules = parts.rules(now, principal.tenant_id, principal.device_id)
        given = request.headers.get(IDEMPOTENCY_HEADER)
        if len(plain) <= INLINE_BYTES:
            points, batch_id = readers.read(reader, plain, rules, parts.series)
        else:  # the event loop has others to serve
            points, batch_id = await asyncio.to_thread(
                readers.read, reader, plain, rules, parts.series
            )
        if not points.seen:
            return Answer(0, 0)
        # (3) its sender may send so much
        parts.quotas.take(principal.tenant_id, principal.device_id, points.seen)
        # (4) it is stored
        key = BatchKey.of(plain, _batch_key(given if given is not None else batch_id))
        sender = sender_of(principal)
        try:
            return await parts.intake.store(Batch(sender, key, points, reader.media, plain, now))
        except Unauthenticated:  # revoked meanwhile
            parts.credentials.forget(request.headers.get("authorization", ""))
            raise


def _batch_key(key: str | None) -> str | None:
    if key is None:
        return None
    if not 0 < len(key) <= MAX_BATCH_KEY or not key.isascii() or not key.isprintable():
        raise BadBatchKey("the batch's key is empty, too long or not printable ASCII")
    return key


def _json(value: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(value), media_type=bodies.JSON)
