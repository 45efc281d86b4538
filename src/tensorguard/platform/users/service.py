"""Accounts: only an administrator makes or changes them, and a tenant always keeps one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.orm import Session

from tensorguard.errors import Conflict, Forbidden, MalformedInput
from tensorguard.platform.audit.repository import AuditRepository
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.tables.people import UserAccount
from tensorguard.platform.principal import Principal, Role, Scope
from tensorguard.platform.users.passwords import Passwords, check_policy
from tensorguard.platform.users.repository import SessionRepository, UserRepository

USERNAME = re.compile(r"[a-z0-9][a-z0-9._@+-]{0,63}")


class UserExists(Conflict):
    code = "user_exists"
    remedy = "Choose another username, or change the account that exists."


class LastAdmin(Conflict):
    code = "last_admin"
    remedy = "Make another administrator first."


@dataclass(frozen=True, slots=True)
class NewUser:
    """An account to be made."""

    username: str
    password: str
    role: Role


@dataclass(frozen=True, slots=True)
class UserChange:
    """What to change of an account; None leaves it."""

    role: Role | None = None
    disabled: bool | None = None
    password: str | None = None


def check_username(text: str) -> str:
    """Return `text` in lower case if it can name a person. Raises `MalformedInput`."""
    name = text.casefold()
    if not USERNAME.fullmatch(name):
        raise MalformedInput("a username has 1 to 64 of a-z, 0-9 and . _ @ + - inside")
    return name


def create_user(
    session: Session,
    new: NewUser,
    *,
    tenant_id: str,
    actor: str,
    passwords: Passwords,
    now: datetime,
) -> UserAccount:
    """Make an account. Raises `UserExists`, `WeakPassword` or `MalformedInput`."""
    username = check_username(new.username)
    check_policy(new.password, username=username)
    users = UserRepository(session, tenant_id=tenant_id)
    users.lock_roles()  # two requests for one name: the second sees the first
    if users.named(username) is not None:
        raise UserExists(f"the user {username} exists")
    user = UserAccount(
        id=new_id(),
        tenant_id=tenant_id,
        username=username,
        password_hash=passwords.hash(new.password),
        role=new.role.value,
        disabled=False,
        failed_logins=0,
        locked_until=None,
        created=now,
    )
    users.add(user)
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor,
        action="user.created",
        subject=f"user:{user.id}",
        now=now,
        details={"role": user.role, "username": username},
    )
    return user


def change_user(
    session: Session,
    user_id: str,
    change: UserChange,
    *,
    tenant_id: str,
    actor: str,
    passwords: Passwords,
    now: datetime,
) -> UserAccount:
    """Change an account; a new password, role or ban ends its sessions. Raises `LastAdmin`."""
    users = UserRepository(session, tenant_id=tenant_id)
    users.lock_roles()
    user = users.get(user_id, lock=True)
    was_admin = user.role == Role.admin and not user.disabled
    details: dict[str, str | bool] = {}
    if change.password is not None:
        user.password_hash = passwords.hash(check_policy(change.password, username=user.username))
        user.failed_logins, user.locked_until = 0, None
        details["password"] = True
    if change.role is not None and change.role != user.role:
        user.role = change.role.value
        details["role"] = user.role
    if change.disabled is not None and change.disabled != user.disabled:
        user.disabled = change.disabled
        details["disabled"] = user.disabled
    if not details:
        return user
    session.flush()
    if was_admin and users.count_admins() == 0:
        raise LastAdmin(f"{user.username} is the last administrator of this tenant")
    SessionRepository(session, tenant_id=tenant_id).revoke(user_id=user.id, now=now)
    AuditRepository(session, tenant_id=tenant_id).append(
        actor=actor,
        action="user.changed",
        subject=f"user:{user.id}",
        now=now,
        details=details,
    )
    return user


def insist_on_admin(principal: Principal) -> Principal:
    """Return a caller that may administer people: a person, never a token. Raises `Forbidden`."""
    if principal.session_id is None or Scope.users_write not in principal.scopes:
        raise Forbidden("accounts are changed by a signed-in administrator only")
    return principal
