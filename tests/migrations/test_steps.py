"""One head; models match; each step goes down and up with rows in it, on both databases."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Engine, MetaData, TypeDecorator, func, select
from sqlalchemy import types as sql_types

from tensorguard.platform.db import revision, served, tables
from tensorguard.platform.db.base import Base
from tensorguard.platform.db.engine import engine_for

NOW = datetime(2030, 1, 1, tzinfo=UTC)
assert tables.__all__  # importing them fills Base.metadata

VALUES: list[tuple[type, object]] = [
    (sql_types.LargeBinary, b"\x00\xff"),
    (sql_types.Boolean, False),
    (sql_types.Integer, 1),
    (sql_types.Numeric, 1.5),
    (sql_types.Float, 1.5),
    (sql_types.DateTime, NOW),
    (sql_types.JSON, {}),
]
# What a table needs on PostgreSQL before it takes a row; the platform makes partitions as data comes.
PREPARE = {
    name: f"CREATE TABLE IF NOT EXISTS {name}_p0 PARTITION OF {name} DEFAULT"
    for name in ("sample", "document")
}


def revisions() -> list[str]:
    """Every revision, oldest first."""
    scripts = ScriptDirectory.from_config(revision.config_for())
    return [script.revision for script in scripts.walk_revisions()][::-1]


@pytest.fixture
def engine(empty_database_url: str) -> Iterator[Engine]:
    made = engine_for(empty_database_url)
    yield made
    made.dispose()


def value(column: Column[Any], made: dict[str, dict[str, Any]]) -> object:
    """Return something that fits a column: what a foreign key names, or the type's own."""
    for key in column.foreign_keys:
        return made[key.column.table.name][key.column.name]
    kind = column.type.impl if isinstance(column.type, TypeDecorator) else column.type
    if isinstance(kind, sql_types.String):
        return uuid.uuid4().hex[: kind.length or 32]
    for known, fitting in VALUES:
        if isinstance(kind, known):
            return fitting
    raise AssertionError(f"no value is known for {column}: {kind!r}")


def fill(engine: Engine) -> dict[str, int]:
    """Put one row into every table that exists, parents first; return the count of each."""
    found = MetaData()
    found.reflect(engine, resolve_fks=False)
    present = {name for name in found.tables if name in Base.metadata.tables}
    made: dict[str, dict[str, Any]] = {}
    with engine.begin() as connection:
        for model in Base.metadata.sorted_tables:
            if model.name not in present:
                continue
            if model.name in PREPARE and engine.dialect.name == "postgresql":
                connection.exec_driver_sql(PREPARE[model.name])
            columns = {column.name for column in found.tables[model.name].columns}
            row = {c.name: value(c, made) for c in model.columns if c.name in columns}
            connection.execute(model.insert().values(row))
            made[model.name] = row
    return counts(engine)


def counts(engine: Engine) -> dict[str, int]:
    found = MetaData()
    found.reflect(engine, resolve_fks=False)
    known = [name for name in found.tables if name in Base.metadata.tables]
    with engine.connect() as connection:
        return {
            name: connection.scalar(select(func.count()).select_from(found.tables[name])) or 0
            for name in known
        }


def empty(engine: Engine) -> None:
    present = counts(engine)
    with engine.begin() as connection:
        for table in reversed(Base.metadata.sorted_tables):
            if table.name in present:
                connection.execute(table.delete())


def test_one_head_and_servers_know_it_without_the_migration_tool() -> None:
    heads = ScriptDirectory.from_config(revision.config_for()).get_heads()
    assert heads == [served.head()]


def test_the_models_match(engine: Engine) -> None:
    revision.upgrade(engine)
    assert revision.check(engine) == revision.head()
    assert counts(engine).keys() == Base.metadata.tables.keys()


def test_each_step_goes_down_and_up_with_rows_in_it(engine: Engine) -> None:
    steps = [None, *revisions()]
    for before, step in itertools.pairwise(steps):
        revision.upgrade(engine, step)
        rows = fill(engine)
        assert rows
        assert set(rows.values()) == {1}
        revision.downgrade(engine, before or "base")
        kept = counts(engine)
        assert kept.keys() < rows.keys()
        assert set(kept.values()) <= {1}  # what earlier tables held is still there
        revision.upgrade(engine, step)
        assert counts(engine) == {name: int(name in kept) for name in rows}
        empty(engine)


def test_all_the_way_down_with_rows_and_up_again(engine: Engine) -> None:
    revision.upgrade(engine)
    fill(engine)
    revision.downgrade(engine, "base")
    assert counts(engine) == {}
    assert revision.current(engine) is None
    revision.upgrade(engine)
    assert revision.check(engine) == revision.head()


def test_an_unknown_revision_is_refused(engine: Engine) -> None:
    with pytest.raises(revision.MigrationFailed):
        revision.upgrade(engine, "nowhere")
    revision.upgrade(engine)
    assert revision.check(engine) == revision.head()


def test_a_column_that_no_model_knows_is_found(engine: Engine) -> None:
    revision.upgrade(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE tenant ADD COLUMN note VARCHAR(10)")
    with pytest.raises(revision.MigrationFailed, match="note"):
        revision.check(engine)
