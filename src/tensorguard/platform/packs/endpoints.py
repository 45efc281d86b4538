"""Routes of the pack registry. A pack goes in and comes out as the bytes that were signed."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import APIRouter, Depends, Request, Response

from tensorguard.errors import UnsupportedMedia
from tensorguard.platform.auth import require
from tensorguard.platform.packs import service
from tensorguard.platform.packs.repository import PackRepository
from tensorguard.platform.packs.store import PackStore
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of
from tensorguard.wire.packs import PackView

router = APIRouter(prefix="/api/v1/packs", tags=["packs"])

MEDIA_TYPE: Final = "application/octet-stream"

Reader = Annotated[Principal, Depends(require(Scope.packs_read))]
Writer = Annotated[Principal, Depends(require(Scope.packs_write))]


async def pack_bytes(request: Request) -> bytes:
    """Read the body, which the body limit bounds. Raises `UnsupportedMedia`."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise UnsupportedMedia(f"a pack is sent as {MEDIA_TYPE}")
    return await request.body()


def _store(request: Request, principal: Principal) -> PackStore:
    return PackStore(state_of(request).settings.need("home"), tenant_id=principal.tenant_id)


@router.post("", status_code=201)
def register(
    request: Request,
    response: Response,
    principal: Writer,  # before the body: a stranger's megabytes are not read
    data: Annotated[bytes, Depends(pack_bytes)],
    session: Database,
) -> PackView:
    """Register a pack: 201, or 200 when it was there."""
    state = state_of(request)
    registered = service.register(
        session,
        principal,
        data,
        settings=state.settings,
        store=_store(request, principal),
        now=state.now(),
    )
    response.status_code = 201 if registered.created else 200
    return PackView.model_validate(registered.pack)


@router.get("")
def packs(principal: Reader, session: Database, paging: Paging) -> Page[PackView]:
    """List the tenant's packs."""
    window = paging.window(principal, "packs")
    rows = PackRepository(session, tenant_id=principal.tenant_id).page(
        after=window.after, limit=window.limit + 1
    )
    return window.page(rows, view=PackView.model_validate, position=lambda pack: pack.pack_id)


@router.get("/{pack_id}")
def pack(pack_id: str, principal: Reader, session: Database) -> PackView:
    """Return one pack."""
    row = PackRepository(session, tenant_id=principal.tenant_id).get(pack_id)
    return PackView.model_validate(row)


@router.get("/{pack_id}/content")
def content(pack_id: str, request: Request, principal: Reader, session: Database) -> Response:
    """Return the archive."""
    row = PackRepository(session, tenant_id=principal.tenant_id).get(pack_id)
    data = _store(request, principal).read(row.pack_id, sha256=row.sha256, limit=row.size)
    return Response(data, media_type=MEDIA_TYPE)


@router.delete("/{pack_id}")
def retire(pack_id: str, request: Request, principal: Writer, session: Database) -> PackView:
    """Retire a pack: new grants no longer name it."""
    row = service.retire(session, principal, pack_id, now=state_of(request).now())
    return PackView.model_validate(row)
