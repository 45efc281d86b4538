"""A real platform process on a throw-away database, with a device that writes and a person who reads."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from pydantic import SecretBytes
from sqlalchemy.orm import Session, sessionmaker

from tensorguard.bench.processes import Child, free_port
from tensorguard.platform.db import revision
from tensorguard.platform.db.base import new_id
from tensorguard.platform.db.engine import engine_for
from tensorguard.platform.db.tables.people import ApiToken, UserAccount
from tensorguard.platform.principal import Role, Scope
from tensorguard.platform.secrets import Secrets, random_token
from tensorguard.platform.users.tenants import create_tenant

LIFE: Final = timedelta(days=1)
UNLIMITED: Final = "1000000000"  # samples a second: a bench is no fleet


@dataclass(frozen=True, slots=True)
class Prepared:
    """A migrated database, and the tokens and variables for a platform on it."""

    database_url: str
    environment: Mapping[str, str]
    writer: str
    reader: str
    folder: Path

    def process(self, *, log: str = "platform.log") -> Child:
        """Return a platform process, not started yet, on a port of its own."""
        port = free_port()
        arguments = [
            "-c",
            "from tensorguard.cli import main; main()",
            "platform",
            "serve",
            "--port",
            str(port),
        ]
        return Child(arguments, port, self.environment, self.folder / log)


def prepare(database_url: str, folder: Path, **variables: str) -> Prepared:
    """Migrate a database and put a tenant with two tokens into it."""
    engine = engine_for(database_url)
    key = secrets.token_bytes(32)
    try:
        revision.upgrade(engine)
        with sessionmaker(engine).begin() as session:
            writer, reader = _people(session, Secrets(SecretBytes(key)))
    finally:
        engine.dispose()
    home = folder / "home"
    home.mkdir(mode=0o700, exist_ok=True)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(folder),
        "TG_ENVIRONMENT": "development",
        "TG_SECRET_KEY": key.hex(),
        "TG_KEY_MASTER": secrets.token_hex(32),
        "TG_KEY_PROVIDER": f"file:{home / 'keys'}",
        "TG_HOME": str(home),
        "TG_LOG_LEVEL": "WARNING",
        "TG_MAX_DEVICE_RATE": UNLIMITED,
        "TG_MAX_TENANT_RATE": UNLIMITED,
        "DATABASE_URL": database_url,
        **variables,
    }
    return Prepared(database_url, environment, writer, reader, folder)


def _people(session: Session, keyed: Secrets) -> tuple[str, str]:
    now = datetime.now(UTC)
    tenant = create_tenant(session, "bench", actor="operator:bench", now=now)
    user = UserAccount(
        id=new_id(),
        tenant_id=tenant.id,
        username="bench",
        password_hash="!",  # noqa: S106 - nobody signs in with it
        role=Role.admin.value,
        disabled=False,
        failed_logins=0,
        locked_until=None,
        created=now,
    )
    session.add(user)
    session.flush()
    tokens = []
    for scope, device in ((Scope.telemetry_write, "bench-arm"), (Scope.telemetry_read, None)):
        token = random_token("tgp")
        tokens.append(token)
        session.add(
            ApiToken(
                id=new_id(),
                tenant_id=tenant.id,
                name=scope.value,
                token_hash=keyed.pepper(token),
                scopes=scope.value,
                created_by=user.id,
                device_id=device,
                created=now,
                expires=now + LIFE,
                last_used=None,
                revoked=None,
            )
        )
    return tokens[0], tokens[1]
