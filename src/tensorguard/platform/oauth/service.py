"""What the token endpoint decides: who asks, for what, and whether they may; every issue is audited."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.orm import Session

from tensorguard.errors import TensorGuardError
from tensorguard.identity.csr import load_spki
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.tables.devices import Device
from tensorguard.platform.devices.repository import DeviceDirectory
from tensorguard.platform.identity.repository import CertificateRepository
from tensorguard.platform.oauth.access_tokens import IssuedToken, issue_access_token, issue_grant
from tensorguard.platform.oauth.assertion import claimed_device, verify_assertion
from tensorguard.platform.oauth.errors import (
    InvalidClient,
    InvalidRequest,
    InvalidScope,
    InvalidTarget,
    UnsupportedGrantType,
)
from tensorguard.platform.oauth.form import TokenForm
from tensorguard.platform.oauth.repository import AssertionRepository
from tensorguard.platform.packs.repository import PackRepository
from tensorguard.platform.principal import DEVICE_SCOPES, Principal, PrincipalKind, Scope
from tensorguard.platform.state import PlatformState
from tensorguard.wire import grants
from tensorguard.wire.oauth import (
    ACCESS_TOKEN_TYPE,
    ASSERTION_TYPE,
    CLIENT_CREDENTIALS,
    JWT_TYPE,
    PLATFORM_AUDIENCE,
    TOKEN_EXCHANGE,
    TokenResponse,
)

SUBJECT_TYPES: Final = frozenset({ACCESS_TOKEN_TYPE})
REQUESTED_TYPES: Final = frozenset({None, ACCESS_TOKEN_TYPE, JWT_TYPE})


@dataclass(frozen=True, slots=True)
class TokenRequest:
    """A form, and what the request around it says."""

    form: TokenForm
    audiences: frozenset[str]
    subject: Callable[[str], Principal]  # authenticates a person's token


def token(session: Session, state: PlatformState, request: TokenRequest) -> TokenResponse:
    """Answer a token request. Raises an `OAuthError`."""
    match request.form.grant_type:
        case None:
            raise InvalidRequest("grant_type is missing")
        case str(kind) if kind == CLIENT_CREDENTIALS:
            return _client_credentials(session, state, request)
        case str(kind) if kind == TOKEN_EXCHANGE:
            return _exchange(session, state, request)
        case _:
            raise UnsupportedGrantType("this grant type is not supported")


def _client_credentials(
    session: Session, state: PlatformState, request: TokenRequest
) -> TokenResponse:
    now = state.now()
    form = request.form
    device = authenticate_device(session, request, now=now)
    if form.target == grants.AUDIENCE:
        _serving_scope(form)
        return _grant(
            session,
            state,
            subject=device.id,
            kind=PrincipalKind.device,
            tenant_id=device.tenant_id,
            now=now,
        )
    if form.target not in {None, PLATFORM_AUDIENCE}:
        raise InvalidTarget("no such resource is known")
    scopes = _device_scopes(form)
    issued = issue_access_token(
        state, device_id=device.id, tenant_id=device.tenant_id, scopes=scopes, now=now
    )
    scope = " ".join(sorted(scopes))
    _audit(
        session,
        device.tenant_id,
        issued,
        actor=f"{PrincipalKind.device}:{device.id}",
        audience=PLATFORM_AUDIENCE,
        scope=scope,
        now=now,
    )
    return TokenResponse(access_token=issued.value, expires_in=issued.expires_in, scope=scope)


def authenticate_device(session: Session, request: TokenRequest, *, now: datetime) -> Device:
    """Return the active device whose fresh assertion this is. Raises `InvalidClient`."""
    form = request.form
    if form.client_assertion_type != ASSERTION_TYPE or form.client_assertion is None:
        raise InvalidClient(f"a device authenticates by {ASSERTION_TYPE}")
    # (1) who it claims to be
    claimed = claimed_device(form.client_assertion)
    if form.client_id is not None and form.client_id != claimed:
        raise InvalidClient("client_id is not the assertion's subject")
    device = DeviceDirectory(session).find(claimed)
    if device is None:
        raise InvalidClient("the client assertion does not verify")
    # (2) it is, by the key that it enrolled with
    assertion = verify_assertion(
        form.client_assertion,
        load_spki(device.public_key),
        device_id=device.id,
        audiences=request.audiences,
        now=now,
    )
    # (3) it is active: not revoked, and its certificate holds
    if device.revoked is not None:
        raise InvalidClient("the device is revoked")
    certificates = CertificateRepository(session, tenant_id=device.tenant_id)
    if certificates.valid(device.id, now=now) is None:
        raise InvalidClient("the device's certificate has expired")
    # (4) this assertion was not used before
    used = AssertionRepository(session, tenant_id=device.tenant_id)
    if not used.use(device.id, assertion.jti_sha256, expires=assertion.expires, now=now):
        raise InvalidClient("the client assertion was used before")
    return device


def _exchange(session: Session, state: PlatformState, request: TokenRequest) -> TokenResponse:
    form = request.form
    if form.subject_token is None or form.subject_token_type not in SUBJECT_TYPES:
        raise InvalidRequest(f"a subject_token of type {ACCESS_TOKEN_TYPE} is needed")
    if form.requested_token_type not in REQUESTED_TYPES:
        raise InvalidRequest("this requested_token_type is not supported")
    if form.target not in {None, grants.AUDIENCE}:
        raise InvalidTarget("a token is exchanged for a serving grant only")
    _serving_scope(form)
    try:
        principal = request.subject(form.subject_token)
    except TensorGuardError as error:
        raise InvalidRequest("the subject_token is not valid") from error
    if principal.kind is PrincipalKind.device:
        raise InvalidRequest("a device asks with client_credentials, so that revoking it works")
    if Scope.serving_infer not in principal.scopes:
        raise InvalidScope(f"the subject does not have the scope {Scope.serving_infer}")
    response = _grant(
        session,
        state,
        subject=principal.id,
        kind=principal.kind,
        tenant_id=principal.tenant_id,
        now=state.now(),
    )
    return response.model_copy(update={"issued_token_type": ACCESS_TOKEN_TYPE})


def _grant(
    session: Session,
    state: PlatformState,
    *,
    subject: str,
    kind: PrincipalKind,
    tenant_id: str,
    now: datetime,
) -> TokenResponse:
    packs = PackRepository(session, tenant_id=tenant_id).active_ids(limit=grants.MAX_PACKS)
    if not packs:
        raise InvalidTarget("no pack is active in this tenant's registry")
    issued = issue_grant(
        state, subject=subject, kind=kind, tenant_id=tenant_id, packs=packs, now=now
    )
    _audit(
        session,
        tenant_id,
        issued,
        actor=f"{kind}:{subject}",
        audience=grants.AUDIENCE,
        scope=grants.SCOPE,
        now=now,
    )
    return TokenResponse(
        access_token=issued.value, expires_in=issued.expires_in, scope=grants.SCOPE
    )


def _serving_scope(form: TokenForm) -> None:
    if form.scope is not None and form.scope.split() != [grants.SCOPE]:
        raise InvalidScope(f"a serving grant has the scope {grants.SCOPE} alone")


def _device_scopes(form: TokenForm) -> frozenset[Scope]:
    if form.scope is None:
        return DEVICE_SCOPES
    known = {scope.value: scope for scope in DEVICE_SCOPES}
    words = form.scope.split()
    if not words or not known.keys() >= set(words):
        raise InvalidScope("a device may have " + ", ".join(sorted(known)))
    return frozenset(known[word] for word in words)


def _audit(
    session: Session,
    tenant_id: str,
    issued: IssuedToken,
    *,
    actor: str,
    audience: str,
    scope: str,
    now: datetime,
) -> None:
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor,
        action="token.issued",
        subject=f"access-token:{issued.token_id}",
        now=now,
        details={"audience": audience, "key": issued.kid, "scope": scope},
    )
