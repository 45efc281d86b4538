"""What the API says about people, and what it takes."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr

from tensorguard.platform.db.tables.people import ApiToken, UserAccount
from tensorguard.platform.principal import Principal, PrincipalKind, Role, Scope
from tensorguard.platform.users.passwords import MAX_LENGTH
from tensorguard.platform.users.tokens import LONGEST

Name = Annotated[str, Field(min_length=1, max_length=64)]
Password = Annotated[SecretStr, Field(min_length=1, max_length=MAX_LENGTH)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class LoginBody(_Body):
    """An attempt to sign in."""

    tenant: Name
    username: Name
    password: Password


class NewUserBody(_Body):
    """An account to be made."""

    username: Name
    password: Password
    role: Role


class UserChangeBody(_Body):
    """What to change; an absent member stays."""

    role: Role | None = None
    disabled: bool | None = None
    password: Password | None = None


class NewTokenBody(_Body):
    """A token to be made. Its life is in seconds."""

    name: Annotated[str, Field(max_length=64, pattern=r"^[\w .:@/-]+$")]
    scopes: Annotated[frozenset[Scope], Field(min_length=1)]
    expires_in: Annotated[int, Field(ge=1, le=int(LONGEST.total_seconds()))] = 30 * 86_400
    device_id: Annotated[str, Field(min_length=1, max_length=36)] | None = None

    @property
    def life(self) -> timedelta:
        """For how long the token is good."""
        return timedelta(seconds=self.expires_in)


class UserView(BaseModel):
    """An account."""

    id: str
    username: str
    role: Role
    disabled: bool
    locked_until: datetime | None
    created: datetime

    @classmethod
    def of(cls, user: UserAccount) -> UserView:
        """Render a row."""
        return cls(
            id=user.id,
            username=user.username,
            role=Role(user.role),
            disabled=user.disabled,
            locked_until=user.locked_until,
            created=user.created,
        )


class LoginView(BaseModel):
    """A session: `token` for the Authorization header, `csrf_token` for use with the cookie."""

    token: str
    csrf_token: str
    expires: datetime
    user: UserView


class MeView(BaseModel):
    """The caller. `csrf_token` is null for callers without a session."""

    id: str
    kind: PrincipalKind
    tenant_id: str
    name: str
    scopes: list[Scope]
    device_id: str | None
    csrf_token: str | None

    @classmethod
    def of(cls, principal: Principal, csrf_token: str | None) -> MeView:
        """Render the caller."""
        return cls(
            id=principal.id,
            kind=principal.kind,
            tenant_id=principal.tenant_id,
            name=principal.name,
            scopes=sorted(principal.scopes),
            device_id=principal.device_id,
            csrf_token=csrf_token,
        )


class TokenView(BaseModel):
    """An API token, without the token."""

    id: str
    name: str
    scopes: list[Scope]
    device_id: str | None
    created_by: str
    created: datetime
    expires: datetime
    last_used: datetime | None
    revoked: datetime | None

    @classmethod
    def of(cls, row: ApiToken) -> TokenView:
        """Render a row."""
        return cls(
            id=row.id,
            name=row.name,
            scopes=[Scope(word) for word in row.scopes.split()],
            device_id=row.device_id,
            created_by=row.created_by,
            created=row.created,
            expires=row.expires,
            last_used=row.last_used,
            revoked=row.revoked,
        )


class NewTokenView(TokenView):
    """An API token, this once with the token; null when a create is repeated."""

    token: str | None

    @classmethod
    def made(cls, row: ApiToken, token: str) -> NewTokenView:
        """Render a new token."""
        return cls(**TokenView.of(row).model_dump(), token=token)
