"""Routes of a tenant's keys. Who may read sees states and public keys; security alone changes and uses."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import timedelta
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response

from tensorguard.platform.auth import require
from tensorguard.platform.idempotency import Idempotency, IdempotentRequest
from tensorguard.platform.keys.service import Keyrings, Ring
from tensorguard.platform.keys.views import (
    DataKeyView,
    DestructionBody,
    KeyView,
    MessageBody,
    NewKeyBody,
    PlaintextView,
    PolicyBody,
    PublicKeysView,
    PublicKeyView,
    SignatureBody,
    SignatureView,
    VerifiedView,
    WrappedBody,
)
from tensorguard.platform.paging import Page, Paging
from tensorguard.platform.principal import Principal, Scope
from tensorguard.platform.session import Database
from tensorguard.platform.state import state_of

router = APIRouter(prefix="/api/v1/keys", tags=["keys"])

Reader = Annotated[Principal, Depends(require(Scope.keys_read))]
Writer = Annotated[Principal, Depends(require(Scope.keys_write))]
User = Annotated[Principal, Depends(require(Scope.keys_use))]
Version = Annotated[int, Path(ge=1, lt=2**31)]


def keyrings(request: Request, principal: Principal, session: Database) -> Keyrings:
    """Return the caller's rings."""
    state = state_of(request)
    return Keyrings(
        session,
        tenant_id=principal.tenant_id,
        actor=principal.actor,
        keys=state.keys,
        envelope=state.envelope,
        now=state.now(),
    )


class Change:
    """A change by someone who may, done once for its Idempotency-Key."""

    def __init__(
        self, request: Request, principal: Writer, session: Database, once: Idempotency
    ) -> None:
        self._session, self._principal = session, principal
        self._once: IdempotentRequest = once
        self.rings = keyrings(request, principal, session)

    def answer(self, work: Callable[[], Ring], *, status: int = 200) -> Response:
        """Do the work and answer with the ring."""
        return self._once.answer(
            self._session, self._principal, lambda: KeyView.of(work()), status=status
        )


Changes = Annotated[Change, Depends(Change)]


@router.get("")
def list_keys(
    request: Request, principal: Reader, session: Database, paging: Paging
) -> Page[KeyView]:
    """List the tenant's keys by name."""
    window = paging.window(principal, "keys")
    rings = keyrings(request, principal, session).page(after=window.after, limit=window.limit + 1)
    return window.page(rings, view=KeyView.of, position=lambda ring: ring.row.name)


@router.post("", status_code=201, response_model=KeyView)
def create_key(body: NewKeyBody, change: Changes) -> Response:
    """Make a key with an active version 1."""
    return change.answer(
        lambda: change.rings.create(
            body.name, purpose=body.purpose, algorithm=body.algorithm, policy=body.policy()
        ),
        status=201,
    )


@router.get("/{name}")
def get_key(name: str, request: Request, principal: Reader, session: Database) -> KeyView:
    """Return one key."""
    return KeyView.of(keyrings(request, principal, session).get(name))


@router.get("/{name}/public-keys")
def public_keys(
    name: str, request: Request, principal: Reader, session: Database
) -> PublicKeysView:
    """Return the public keys of every version that is not destroyed."""
    found = keyrings(request, principal, session).public_keys(name)
    views = [PublicKeyView.of(info, public) for info, public in found]
    return PublicKeysView(keys=[view.jwk for view in views if view.jwk], versions=views)


@router.put("/{name}/policy", response_model=KeyView)
def set_policy(name: str, body: PolicyBody, change: Changes) -> Response:
    """Change when the key rotates and when replaced versions are retired."""
    return change.answer(lambda: change.rings.set_policy(name, body.policy()))


@router.post("/{name}/stage", response_model=KeyView)
def stage(name: str, change: Changes) -> Response:
    """Publish the version that the next rotation activates."""
    return change.answer(lambda: change.rings.stage(name))


@router.post("/{name}/rotate", response_model=KeyView)
def rotate(name: str, change: Changes) -> Response:
    """Activate the published version, or a fresh one."""
    return change.answer(lambda: change.rings.rotate(name))


@router.post("/{name}/disable", response_model=KeyView)
def disable(name: str, change: Changes) -> Response:
    """Refuse every use of the key until it is enabled."""
    return change.answer(lambda: change.rings.disable(name))


@router.post("/{name}/enable", response_model=KeyView)
def enable(name: str, change: Changes) -> Response:
    """Undo `disable`."""
    return change.answer(lambda: change.rings.enable(name))


@router.post("/{name}/versions/{version}/retire", response_model=KeyView)
def retire(name: str, version: Version, change: Changes) -> Response:
    """End a version: it opens nothing any more, what it signed still verifies by its public key."""
    return change.answer(lambda: change.rings.retire(name, version))


@router.post("/{name}/versions/{version}/destroy", response_model=KeyView)
def destroy(name: str, version: Version, body: DestructionBody, change: Changes) -> Response:
    """Have a retired version destroyed after a delay."""
    delay = timedelta(seconds=body.delay_seconds)
    return change.answer(lambda: change.rings.destroy(name, version, delay=delay))


@router.post("/{name}/versions/{version}/cancel-destruction", response_model=KeyView)
def cancel_destruction(name: str, version: Version, change: Changes) -> Response:
    """Keep a version whose time has not come."""
    return change.answer(lambda: change.rings.cancel_destruction(name, version))


@router.post("/{name}/sign")
def sign(
    name: str, body: MessageBody, request: Request, principal: User, session: Database
) -> SignatureView:
    """Sign a message with the active version."""
    made = keyrings(request, principal, session).sign(name, body.message)
    return SignatureView(
        kid=f"{made.key_id}.{made.version}",
        version=made.version,
        algorithm=made.algorithm,
        signature=_text(made.value),
    )


@router.post("/{name}/verify")
def verify(
    name: str, body: SignatureBody, request: Request, principal: Reader, session: Database
) -> VerifiedView:
    """Say that a signature holds; 422 if it does not."""
    rings = keyrings(request, principal, session)
    version = rings.verify(name, body.message, version=body.version, signature=body.signature)
    return VerifiedView(version=version)


@router.post("/{name}/data-keys", status_code=201)
def data_key(name: str, request: Request, principal: User, session: Database) -> DataKeyView:
    """Make a data key of 32 bytes, wrapped for this tenant."""
    made = keyrings(request, principal, session).data_key(name)
    return DataKeyView(plaintext=_text(made.plaintext), wrapped=_text(made.wrapped))


@router.post("/{name}/unwrap")
def unwrap(
    name: str, body: WrappedBody, request: Request, principal: User, session: Database
) -> PlaintextView:
    """Open a data key that was wrapped for this tenant."""
    plaintext = keyrings(request, principal, session).unwrap(name, body.wrapped)
    return PlaintextView(plaintext=_text(plaintext))


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()
