"""Whether a database may be served from: it must be at the newest revision that this package carries.

It reads the migrations' own headers instead of loading the migration tool, which would stay in the
memory of every server for one question at its start.
"""

from __future__ import annotations

import re
from importlib import resources

from sqlalchemy import Engine, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from tensorguard.errors import ConfigurationError, TensorGuardError
from tensorguard.platform.db.engine import open_engine
from tensorguard.settings import Settings

_REVISION = re.compile(r'^revision = "(\w+)"$', re.MULTILINE)
_BEFORE = re.compile(r'^down_revision = "(\w+)"$', re.MULTILINE)


class NoHead(ConfigurationError):
    code = "migrations_unreadable"
    remedy = "Install the package again: its migrations are not one unbroken line."


def head() -> str:
    """Return the newest revision that this package knows. Raises `NoHead`."""
    folder = resources.files("tensorguard.platform.db") / "migrations" / "versions"
    revisions, followed = set[str](), set[str]()
    for file in folder.iterdir():
        if file.name.endswith(".py"):
            source = file.read_text(encoding="utf-8")
            revisions |= set(_REVISION.findall(source))
            followed |= set(_BEFORE.findall(source))
    heads = revisions - followed
    if len(heads) != 1:
        raise NoHead(f"this package carries {len(heads)} newest migrations")
    return heads.pop()


def current(engine: Engine) -> str | None:
    """Return the revision of the database, or None when it is empty."""
    with engine.connect() as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        found: str | None = connection.scalar(text("SELECT version_num FROM alembic_version"))
        return found


def probe(settings: Settings) -> str | None:
    """Say why the database cannot be served from, or None; for the DATABASE_REVISION gate."""
    try:
        engine = open_engine(settings)
        found = current(engine)
        engine.dispose()
    except TensorGuardError as error:
        return f"The database cannot be used: {error}."
    except (SQLAlchemyError, OSError):
        return "The database cannot be reached."
    newest = head()
    if found != newest:
        return f"The database is at {found or 'no revision'}, not at {newest}."
    return None
