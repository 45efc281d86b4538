"""All SQL about the people of one tenant, their sessions and their tokens."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from tensorguard.errors import NotFound
from tensorguard.platform.db.tables.people import ApiToken, Tenant, UserAccount, UserSession


class UserRepository:
    """The accounts of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id
        self._mine = select(UserAccount).where(UserAccount.tenant_id == tenant_id)

    def get(self, user_id: str, *, lock: bool = False) -> UserAccount:
        """Return one account, locked against other writers if asked. Raises `NotFound`."""
        query = self._mine.where(UserAccount.id == user_id)
        if lock:
            query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
        user = self._session.scalar(query)
        if user is None:
            raise NotFound(f"there is no user {user_id[:64]}")
        return user

    def named(self, username: str, *, lock: bool = False) -> UserAccount | None:
        """Return the account of this name, if there is one."""
        query = self._mine.where(UserAccount.username == username)
        if lock:
            query = query.with_for_update(key_share=True).execution_options(populate_existing=True)
        return self._session.scalar(query)

    def page(self, *, after: str | None, limit: int) -> list[UserAccount]:
        """Return up to `limit` accounts whose name comes after `after`, by name."""
        query = self._mine.order_by(UserAccount.username).limit(limit)
        if after is not None:
            query = query.where(UserAccount.username > after)
        return list(self._session.scalars(query))

    def add(self, user: UserAccount) -> None:
        """Store a new account."""
        self._session.add(user)
        self._session.flush()

    def lock_roles(self) -> None:
        """Let one transaction at a time change who administers this tenant."""
        self._session.execute(
            select(Tenant.id).where(Tenant.id == self._tenant_id).with_for_update(key_share=True)
        )

    def count_admins(self) -> int:
        """Return the number of administrators who can sign in."""
        query = (
            select(func.count())
            .select_from(UserAccount)
            .where(
                UserAccount.tenant_id == self._tenant_id,
                UserAccount.role == "admin",
                UserAccount.disabled.is_(False),
            )
        )
        return self._session.scalar(query) or 0


class SessionRepository:
    """The logins of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._tenant_id = tenant_id

    def add(self, login: UserSession) -> None:
        """Store a new login."""
        self._session.add(login)
        self._session.flush()

    def revoke(self, *, user_id: str, now: datetime, session_id: str | None = None) -> int:
        """End one login of a user, or all of them; return how many were open."""
        query = update(UserSession).where(
            UserSession.tenant_id == self._tenant_id,
            UserSession.user_id == user_id,
            UserSession.revoked.is_(None),
        )
        if session_id is not None:
            query = query.where(UserSession.id == session_id)
        result = self._session.execute(query.values(revoked=now).returning(UserSession.id))
        return len(result.all())


class TokenRepository:
    """The API tokens of one tenant."""

    def __init__(self, session: Session, *, tenant_id: str) -> None:
        self._session = session
        self._mine = select(ApiToken).where(ApiToken.tenant_id == tenant_id)

    def get(self, token_id: str, *, created_by: str | None = None) -> ApiToken:
        """Return one token, of one creator or of any. Raises `NotFound`."""
        query = self._mine.where(ApiToken.id == token_id)
        if created_by is not None:
            query = query.where(ApiToken.created_by == created_by)
        token = self._session.scalar(query)
        if token is None:
            raise NotFound(f"there is no token {token_id[:64]}")
        return token

    def page(
        self, *, after: str | None, limit: int, created_by: str | None = None
    ) -> list[ApiToken]:
        """Return up to `limit` tokens whose id comes after `after`, of one creator or of all."""
        query = self._mine.order_by(ApiToken.id).limit(limit)
        if after is not None:
            query = query.where(ApiToken.id > after)
        if created_by is not None:
            query = query.where(ApiToken.created_by == created_by)
        return list(self._session.scalars(query))

    def add(self, token: ApiToken) -> None:
        """Store a new token."""
        self._session.add(token)
        self._session.flush()
