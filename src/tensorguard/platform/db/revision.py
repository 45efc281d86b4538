"""Migrations: one head, applied under a lock, and an app that refuses any other revision."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from alembic import command
from alembic.config import Config
from alembic.util.exc import CommandError
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from tensorguard.errors import ConfigurationError
from tensorguard.platform.db.served import current, head

__all__ = ["MigrationFailed", "check", "config_for", "current", "downgrade", "head", "upgrade"]

ADVISORY_LOCK = 0x54_47_4D_49_47  # "TGMIG": one migration at a time in one database
LOCK_TIMEOUT = "5s"  # a migration that waits longer blocks every reader behind it


class MigrationFailed(ConfigurationError):
    code = "migration"
    remedy = "Read the message, restore the backup if one step was applied, and try again."


def config_for(connection: Connection | None = None) -> Config:
    """Return the Alembic configuration of this package, for one connection."""
    config = Config()
    config.set_main_option("script_location", "tensorguard:platform/db/migrations")
    config.set_main_option("path_separator", "os")
    if connection is not None:
        config.attributes["connection"] = connection
    return config


@contextmanager
def _migrating(engine: Engine) -> Iterator[Config]:
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text(f"SET lock_timeout = '{LOCK_TIMEOUT}'"))
            connection.execute(text("SET statement_timeout = 0"))
            connection.execute(text(f"SELECT pg_advisory_lock({ADVISORY_LOCK})"))
            connection.commit()
        try:
            yield config_for(connection)
            connection.commit()
        except (SQLAlchemyError, CommandError) as error:
            connection.rollback()
            raise MigrationFailed(f"the migration failed: {error}") from error
        finally:
            if engine.dialect.name == "postgresql":
                connection.execute(text(f"SELECT pg_advisory_unlock({ADVISORY_LOCK})"))
                connection.commit()


def upgrade(engine: Engine, revision: str = "head") -> None:
    """Migrate up to `revision`. Raises `MigrationFailed`."""
    with _migrating(engine) as config:
        command.upgrade(config, revision)


def downgrade(engine: Engine, revision: str) -> None:
    """Migrate down to `revision` (`base` removes everything). Raises `MigrationFailed`."""
    with _migrating(engine) as config:
        command.downgrade(config, revision)


def check(engine: Engine) -> str:
    """Return the revision if it is head and the tables match the models, else raise."""
    found = current(engine)
    if found != head():
        raise MigrationFailed(f"the database is at {found or 'no revision'}, not at {head()}")
    with _migrating(engine) as config:
        command.check(config)
    return found
