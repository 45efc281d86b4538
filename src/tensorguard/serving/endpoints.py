"""The gateway's routes: authorise, read a bounded body, delegate, return."""

from __future__ import annotations

import re
import time

import msgspec
from fastapi import APIRouter, Request, Response

from tensorguard.errors import MalformedInput
from tensorguard.serving.auth import Granted
from tensorguard.serving.bodies import JSON, read_json, read_octets
from tensorguard.serving.gateway import Wanted
from tensorguard.serving.pool import Answer
from tensorguard.serving.state import state_of
from tensorguard.wire.frames import MEDIA_TYPE
from tensorguard.wire.serving import (
    DEADLINE_HEADER,
    KEYS_HEADER,
    MAX_DEADLINE_MS,
    PACK_HEADER,
    TIMING_HEADER,
    InferRequest,
    InferResponse,
    KeysView,
    ModelList,
    Timings,
    server_timing,
    summary,
)

router = APIRouter(prefix="/v1", tags=["serving"])
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MILLISECONDS = re.compile(r"[0-9]{1,6}")


def _json(message: msgspec.Struct, status: int = 200) -> Response:
    return Response(msgspec.json.encode(message), status_code=status, media_type=JSON)


def _digest(text: str | None, what: str) -> str:
    if text is None or not _DIGEST.fullmatch(text):
        raise MalformedInput(f"{what} must be a SHA-256 of 64 lower-case hex digits")
    return text


def _deadline(request: Request) -> float | None:
    """Return when the caller has no more use of an answer, in seconds of `perf_counter`."""
    arrived = time.perf_counter()
    text = request.headers.get(DEADLINE_HEADER)
    if text is None:
        return None
    if not _MILLISECONDS.fullmatch(text) or not 0 < int(text) <= MAX_DEADLINE_MS:
        raise MalformedInput(f"the header {DEADLINE_HEADER} must be 1 to {MAX_DEADLINE_MS}")
    return arrived + int(text) / 1000


def _timings(answer: Answer) -> Timings:
    return Timings(
        queue_ms=round(answer.queue_seconds * 1000, 3),
        evaluate_ms=round(answer.evaluate_seconds * 1000, 3),
    )


@router.get("/models")
async def list_models(request: Request, grant: Granted) -> Response:
    """List the models that the grant names and that are served here."""
    served = state_of(request).gateway.models(grant)
    return _json(ModelList(models=tuple(summary(model.view) for model in served)))


@router.get("/models/{name}")
async def get_model(
    request: Request, grant: Granted, name: str, version: str | None = None
) -> Response:
    """Return all that a client needs to use a model: its view."""
    served = state_of(request).gateway.model(grant, Wanted(name, version))
    return Response(served.view_json, media_type=JSON, headers={PACK_HEADER: served.pack_id})


@router.put("/evaluation-keys/{sha256}")
async def put_keys(request: Request, grant: Granted, sha256: str) -> Response:
    """Keep evaluation keys for the caller's tenant: 201, or 200 where they were there already."""
    digest = _digest(sha256, "the path")
    gateway = state_of(request).gateway
    async with gateway.upload():
        new = await gateway.put_keys(grant, digest, await read_octets(request))
    stored = await gateway.find_keys(grant, digest)
    return _json(_view(stored.digest, stored.size, stored.parameters_id), 201 if new else 200)


@router.api_route("/evaluation-keys/{sha256}", methods=["GET", "HEAD"])
async def get_keys(request: Request, grant: Granted, sha256: str) -> Response:
    """Say whether the caller's tenant has these evaluation keys here. Never returns them."""
    stored = await state_of(request).gateway.find_keys(grant, _digest(sha256, "the path"))
    return _json(_view(stored.digest, stored.size, stored.parameters_id))


@router.delete("/evaluation-keys/{sha256}", status_code=204)
async def delete_keys(request: Request, grant: Granted, sha256: str) -> Response:
    """Forget evaluation keys of the caller's tenant."""
    await state_of(request).gateway.delete_keys(grant, _digest(sha256, "the path"))
    return Response(status_code=204)


@router.post("/models/{name}/infer")
async def infer(
    request: Request, grant: Granted, name: str, version: str | None = None
) -> Response:
    """Evaluate a model on one ciphertext frame; the answer is a ciphertext frame."""
    gateway = state_of(request).gateway
    deadline = _deadline(request)
    digest = _digest(request.headers.get(KEYS_HEADER), f"the header {KEYS_HEADER}")
    pinned = request.headers.get(PACK_HEADER)
    wanted = Wanted(
        name, version, None if pinned is None else _digest(pinned, f"the header {PACK_HEADER}")
    )
    async with gateway.inference():
        served = await gateway.ready_for(grant, wanted, digest)
        body = await read_octets(request)
        answer = await gateway.infer(grant, served, digest, body, deadline=deadline)
    return Response(
        answer.ciphertext,
        media_type=MEDIA_TYPE,
        headers={PACK_HEADER: served.pack_id, TIMING_HEADER: server_timing(_timings(answer))},
    )


@router.post("/infer")
async def infer_json(request: Request, grant: Granted) -> Response:
    """Evaluate a model on one ciphertext in base64: the form for small clients."""
    gateway = state_of(request).gateway
    deadline = _deadline(request)
    async with gateway.inference():
        asked = await read_json(request, InferRequest)
        wanted = Wanted(asked.model, asked.version, asked.pack_id)
        served = await gateway.ready_for(grant, wanted, asked.evaluation_keys)
        answer = await gateway.infer(
            grant, served, asked.evaluation_keys, asked.ciphertext, deadline=deadline
        )
    return _json(
        InferResponse(
            ciphertext=answer.ciphertext, pack_id=served.pack_id, timings=_timings(answer)
        )
    )


def _view(digest: str, size: int, parameters_id: bytes) -> KeysView:
    return KeysView(sha256=digest, size=size, parameters_id=parameters_id.hex())
