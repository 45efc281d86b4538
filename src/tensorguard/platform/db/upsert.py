"""Insert-if-absent in one statement, on PostgreSQL and SQLite: the loser of a race waits, then reads."""

from __future__ import annotations

from collections.abc import Mapping

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from tensorguard.platform.db.base import Base


def insert_if_absent(session: Session, table: type[Base], values: Mapping[str, object]) -> bool:
    """Insert one row unless its key is taken; say whether it was inserted."""
    postgres = session.get_bind().dialect.name == "postgresql"
    insert = postgresql.insert(table) if postgres else sqlite.insert(table)
    statement = insert.values(**values).on_conflict_do_nothing()
    return bool(session.execute(statement.returning(*table.__table__.primary_key)).first())
