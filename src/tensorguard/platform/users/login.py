"""Signing in and out. A refusal is a value, not an exception, so that its counters are committed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from sqlalchemy.orm import Session

from tensorguard.errors import Throttled, Unauthenticated
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.tables.people import Tenant, UserAccount, UserSession
from tensorguard.platform.principal import Principal
from tensorguard.platform.secrets import Secrets, random_token
from tensorguard.platform.users.passwords import Passwords
from tensorguard.platform.users.repository import SessionRepository, UserRepository
from tensorguard.platform.users.tenants import find_tenant
from tensorguard.platform.users.throttle import Attempt, Throttle

log = logging.getLogger(__name__)

SESSION_LIFE: Final = timedelta(hours=8)


@dataclass(frozen=True, slots=True)
class Credentials:
    """What came with an attempt to sign in, and from where."""

    tenant: str
    username: str
    password: str
    address: str


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A new session. `token` is known only now."""

    token: str
    login: UserSession
    user: UserAccount


@dataclass(frozen=True, slots=True)
class Refused:
    """No session. Whatever the reason was, `error` does not tell accounts apart."""

    error: Unauthenticated | Throttled


def sign_in(
    session: Session,
    offered: Credentials,
    *,
    passwords: Passwords,
    secrets: Secrets,
    now: datetime,
) -> SignedIn | Refused:
    """Check a password and open a session. Raises `Unavailable` when too many are in work."""
    throttle = Throttle(session, secrets, now=now)
    # (1) lock the counters of this address and this account, whether it exists or not
    address = throttle.lock_address(offered.address)
    tenant = find_tenant(session, offered.tenant)
    users = UserRepository(session, tenant_id=tenant.id) if tenant else None
    user = users.named(offered.username.casefold(), lock=True) if users else None
    account = user or throttle.absent_account(offered.tenant, offered.username.casefold())
    attempt = Attempt(account, address, now)
    try:
        # (2) a locked counter refuses before any password is read
        attempt.check()
        # (3) the password, or as much work for nobody
        passwords.verify(user.password_hash if user else None, offered.password)
        # (4) an account that may not sign in looks like a wrong password
        if tenant is None or user is None or user.disabled:
            raise Unauthenticated("the credential is not valid")
    except Throttled as error:
        return Refused(error)
    except Unauthenticated as error:
        _record_failure(session, attempt, tenant, user, now)
        return Refused(error)
    attempt.succeeded()
    if passwords.is_outdated(user.password_hash):
        user.password_hash = passwords.hash(offered.password)
    return open_session(session, user, secrets=secrets, now=now)


def open_session(
    session: Session, user: UserAccount, *, secrets: Secrets, now: datetime
) -> SignedIn:
    """Open a session for a person whose identity was proven."""
    token = random_token("tgs")
    login = UserSession(
        id=new_id(),
        tenant_id=user.tenant_id,
        user_id=user.id,
        token_hash=secrets.pepper(token),
        created=now,
        expires=now + SESSION_LIFE,
        last_used=now,
        revoked=None,
    )
    SessionRepository(session, tenant_id=user.tenant_id).add(login)
    AuditRepository(session, tenant_id=user.tenant_id).append(
        actor=f"user:{user.id}",
        action="auth.signed_in",
        subject=f"session:{login.id}",
        now=now,
        details={"username": user.username},
    )
    return SignedIn(token, login, user)


def sign_out(session: Session, principal: Principal, *, now: datetime) -> None:
    """End the session that the caller used. A caller without one has nothing to end."""
    if principal.session_id is None:
        return
    ended = SessionRepository(session, tenant_id=principal.tenant_id).revoke(
        user_id=principal.id, now=now, session_id=principal.session_id
    )
    if ended:
        AuditRepository(session, tenant_id=principal.tenant_id).append(
            actor=principal.actor,
            action="auth.signed_out",
            subject=f"session:{principal.session_id}",
            now=now,
        )


def _record_failure(
    session: Session,
    attempt: Attempt,
    tenant: Tenant | None,
    user: UserAccount | None,
    now: datetime,
) -> None:
    locked = attempt.failed()
    log.warning("sign-in refused", extra={"account_locked": locked})
    if tenant is None:  # there is no trail to write to
        return
    # The name that was typed is not recorded: people type passwords into the wrong field.
    AuditRepository(session, tenant_id=tenant.id).append(
        actor="anonymous",
        action="auth.refused",
        subject=f"user:{user.id}" if user else "user:-",
        now=now,
        details={"address": attempt.address.key[:16], "locked": locked},
    )
