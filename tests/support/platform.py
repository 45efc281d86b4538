"""A platform app on a fresh, migrated database, with people in it. Fixtures are in `conftest.py`.

def test_x(platform):                      # on SQLite and on PostgreSQL
    acme = platform.tenant("acme")
    headers = platform.sign_in(platform.user(acme, Role.operator))
    platform.client.get("/api/v1/devices", headers=headers)
"""

from __future__ import annotations

import functools
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

from fastapi import FastAPI
from pydantic import SecretBytes, SecretStr
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from support.postgresql import Cluster, Shape
from tensorguard.platform.app import create_app
from tensorguard.platform.db import revision
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.engine import engine_for
from tensorguard.platform.db.tables.people import UserAccount
from tensorguard.platform.principal import Role
from tensorguard.platform.state import PlatformState
from tensorguard.platform.users.login import open_session
from tensorguard.platform.users.passwords import Passwords
from tensorguard.platform.users.tenants import create_tenant, find_tenant
from tensorguard.settings import Environment, Settings

PASSWORD = "a plough in the northern field"
START = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECRET_KEY = SecretBytes(bytes(range(7, 256, 7))[:32] + b"\x9c\x01")
KEY_MASTER = SecretBytes(
    bytes.fromhex("8f1c6a4be05d92a73bd4c8fe107629b35ae1d70c48f26b91d35e8a04c7f91b62")
)


class Clock:
    """A clock that moves when told to."""

    def __init__(self, now: datetime = START) -> None:
        self._now = now

    def __call__(self) -> datetime:
        return self._now

    def advance(self, **amount: float) -> datetime:
        """Move on, by `seconds=`, `minutes=`, `hours=` or `days=`."""
        self._now += timedelta(**amount)
        return self._now


class Databases:
    """Makes databases that are empty, or migrated at the price of a copy."""

    def __init__(self, folder: Path, cluster: Cluster | None) -> None:
        self._folder = folder
        self._cluster = cluster
        self._numbers = count(1)
        self._free: list[str] = []  # migrated PostgreSQL databases without a row

    @functools.cached_property
    def _sqlite_template(self) -> Path:
        path = self._folder / "template.db"
        _migrate(f"sqlite+pysqlite:///{path}")
        return path

    @functools.cached_property
    def _postgresql_template(self) -> str:
        name = self._server.create()
        _migrate(self._server.url(name))
        return name

    @functools.cached_property
    def _shape(self) -> Shape:
        with self._server.connect(self._free_or_new()) as connection:
            return self._server.shape(connection)

    def _free_or_new(self) -> str:
        if not self._free:
            self._free.append(self._server.create(self._postgresql_template))
        return self._free[-1]

    @property
    def _server(self) -> Cluster:
        assert self._cluster is not None
        return self._cluster

    @contextmanager
    def one(self, backend: str, *, migrated: bool) -> Iterator[str]:
        """Yield the URL of a new database, and remove it afterwards."""
        if backend == "sqlite":
            path = self._folder / f"{next(self._numbers)}.db"
            if migrated:
                shutil.copyfile(self._sqlite_template, path)
            yield f"sqlite+pysqlite:///{path}"
            return
        if not migrated:
            name = self._server.create()
            yield self._server.url(name)
            self._server.drop(name)
            return
        shape = self._shape
        name = self._free_or_new()
        self._free.remove(name)
        yield self._server.url(name)
        if self._server.empty(name, shape=shape):  # ten times faster than a copy
            self._free.append(name)
        else:
            self._server.drop(name)


def _migrate(url: str) -> None:
    engine = engine_for(url)
    try:
        revision.upgrade(engine)
    finally:
        engine.dispose()


def settings_for(database_url: str, home: Path) -> Settings:
    """Return development settings with everything given, on a private folder."""
    home.mkdir(mode=0o700, exist_ok=True)
    return Settings(
        environment=Environment.development,
        database_url=SecretStr(database_url),
        home=home,
        secret_key=SECRET_KEY,
        key_master=KEY_MASTER,
        key_provider=f"file:{home / 'keys'}",
    )


@functools.cache
def hashed(password: str) -> str:
    """Return an Argon2id hash; made once per process, for it is meant to be slow."""
    return Passwords().hash(password)


@dataclass
class Platform:
    """A running platform and ways to put people into it without the price of Argon2."""

    app: FastAPI
    client: TestClient
    clock: Clock
    settings: Settings

    @property
    def state(self) -> PlatformState:
        """What the app holds."""
        return self.app.state.platform

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Yield a session that commits."""
        with self.state.sessions.begin() as session:
            yield session

    def tenant(self, name: str = "acme") -> str:
        """Return the id of a tenant, made if it was absent."""
        with self.session() as session:
            found = find_tenant(session, name)
            made = found or create_tenant(session, name, actor="operator:test", now=self.clock())
            return made.id

    def user(
        self,
        tenant_id: str,
        role: Role = Role.admin,
        username: str | None = None,
        *,
        password: str = PASSWORD,
    ) -> str:
        """Return the id of a new user, named after its role unless told otherwise."""
        with self.session() as session:
            user = UserAccount(
                id=new_id(),
                tenant_id=tenant_id,
                username=username or role.value,
                password_hash=hashed(password),
                role=role.value,
                disabled=False,
                failed_logins=0,
                locked_until=None,
                created=self.clock(),
            )
            session.add(user)
            return user.id

    def sign_in(self, user_id: str) -> dict[str, str]:
        """Return the headers of a new session of a user."""
        with self.session() as session:
            user = session.get_one(UserAccount, user_id)
            opened = open_session(session, user, secrets=self.state.secrets, now=self.clock())
        return {"Authorization": f"Bearer {opened.token}"}

    def caller(self, role: Role = Role.admin, tenant: str = "acme") -> dict[str, str]:
        """Return the headers of a new user with this role in this tenant."""
        tenant_id = self.tenant(tenant)
        return self.sign_in(self.user(tenant_id, role, f"{role.value}-{new_id()[:8]}"))

    def login(self, username: str, password: str = PASSWORD, tenant: str = "acme") -> object:
        """Sign in over HTTP and return the response."""
        body = {"tenant": tenant, "username": username, "password": password}
        return self.client.post("/api/v1/auth/login", json=body)


@contextmanager
def running(settings: Settings, clock: Clock, **changes: object) -> Iterator[Platform]:
    """Run an app: lifespan included, log handlers put back afterwards."""
    settings = replace(settings, **changes)
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    app = create_app(settings, now=clock)
    root.handlers[:], root.level = handlers, level
    try:
        with TestClient(app, raise_server_exceptions=False) as client:
            yield Platform(app, client, clock, settings)
    finally:
        app.state.platform.engine.dispose()


def headers_with(headers: Mapping[str, str], **more: str) -> dict[str, str]:
    """Return `headers` and more of them; `_` in a name stands for `-`."""
    return {**headers, **{name.replace("_", "-"): value for name, value in more.items()}}
