"""What an operator does on the machine, without HTTP: migrate, make people, verify the trails.

Only these entry points of the platform are for the command line. Whoever runs them holds the
database and the keys already, so the operating system is what authorises them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import Engine, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.errors import ConfigurationError, Unavailable
from tensorguard.platform.db import revision
from tensorguard.platform.db.engine import open_engine
from tensorguard.platform.db.tables.people import Tenant, UserAccount
from tensorguard.platform.principal import Role
from tensorguard.platform.users import service
from tensorguard.platform.users.passwords import Passwords
from tensorguard.platform.users.repository import UserRepository
from tensorguard.platform.users.tenants import create_tenant, find_tenant, get_tenant
from tensorguard.settings import Settings


class DatabaseNotAtHead(ConfigurationError):
    code = "database_revision"
    remedy = "Run `tensorguard db upgrade`."


class DatabaseDown(Unavailable):
    code = "database_down"
    remedy = "Start the database, check DATABASE_URL, and try again."


@dataclass(frozen=True, slots=True)
class Account:
    """A person, as the command line shows it."""

    id: str
    tenant: str
    username: str
    role: Role
    disabled: bool


def operator() -> str:
    """Return the name under which the audit trail knows who is at this machine."""
    return f"operator:uid-{os.getuid()}"


def now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


@contextmanager
def engine_of(settings: Settings) -> Iterator[Engine]:
    """Yield the database. Raises `DatabaseDown` when it cannot be reached or used."""
    engine = open_engine(settings)
    try:
        yield engine
    except SQLAlchemyError as error:
        raise DatabaseDown(f"the database cannot be used ({type(error).__name__})") from error
    finally:
        engine.dispose()


def _insist_on_head(engine: Engine) -> None:
    found = revision.current(engine)
    if found != revision.head():
        raise DatabaseNotAtHead(
            f"the database is at {found or 'no revision'}, not at {revision.head()}"
        )


@contextmanager
def writing(settings: Settings) -> Iterator[Session]:
    """Yield a session that commits at the end. Raises `DatabaseNotAtHead`, `DatabaseDown`."""
    with engine_of(settings) as engine:
        _insist_on_head(engine)
        with sessionmaker(engine, expire_on_commit=False).begin() as session:
            yield session


@contextmanager
def reading(settings: Settings) -> Iterator[Session]:
    """Yield a session that sees one moment of the database and writes nothing."""
    with engine_of(settings) as engine:
        _insist_on_head(engine)
        if engine.dialect.name == "postgresql":
            moment = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        else:
            moment = engine.execution_options(tensorguard_read_only=True)
        with Session(moment) as session:
            yield session


def create_admin(settings: Settings, *, tenant: str, username: str, password: str) -> Account:
    """Make the first administrator, and the tenant if it is absent."""
    with writing(settings) as session:
        found = find_tenant(session, tenant)
        owner = found or create_tenant(session, tenant, actor=operator(), now=now())
        new = service.NewUser(username, password, Role.admin)
        return _create(session, owner, new)


def create_user(
    settings: Settings, *, tenant: str, username: str, password: str, role: Role
) -> Account:
    """Make an account in a tenant that exists."""
    with writing(settings) as session:
        return _create(
            session, get_tenant(session, tenant), service.NewUser(username, password, role)
        )


def _create(session: Session, tenant: Tenant, new: service.NewUser) -> Account:
    user = service.create_user(
        session,
        new,
        tenant_id=tenant.id,
        actor=operator(),
        passwords=Passwords(),
        now=now(),
    )
    return _account(tenant, user)


def disable_user(settings: Settings, *, tenant: str, username: str) -> Account:
    """Ban an account and end its sessions. Raises `NotFound`, `LastAdmin`."""
    with writing(settings) as session:
        owner = get_tenant(session, tenant)
        users = UserRepository(session, tenant_id=owner.id)
        found = users.named(service.check_username(username))
        user = service.change_user(
            session,
            found.id if found else username,
            service.UserChange(disabled=True),
            tenant_id=owner.id,
            actor=operator(),
            passwords=Passwords(),
            now=now(),
        )
        return _account(owner, user)


def list_users(settings: Settings, *, tenant: str | None = None) -> Iterator[Account]:
    """Yield the accounts of one tenant or of all, by name."""
    with reading(settings) as session:
        for owner in tenants(session, tenant):
            users, after = UserRepository(session, tenant_id=owner.id), None
            while rows := users.page(after=after, limit=500):
                yield from (_account(owner, row) for row in rows)
                after = rows[-1].username


def tenants(session: Session, name: str | None) -> list[Tenant]:
    """Return one tenant by name, or all of them. Raises `NotFound`."""
    if name is not None:
        return [get_tenant(session, name)]
    return list(session.scalars(select(Tenant).order_by(Tenant.name)))


def _account(tenant: Tenant, user: UserAccount) -> Account:
    return Account(user.id, tenant.name, user.username, Role(user.role), user.disabled)
