"""Alembic's entry point: it migrates the connection that the caller holds."""

from alembic import context

from tensorguard.platform.db import tables
from tensorguard.platform.db.base import Base

assert tables.__all__  # noqa: S101 - importing the tables fills the metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    compare_type=True,
    compare_server_default=True,
    transaction_per_migration=True,
    render_as_batch=True,
    include_object=lambda _object, name, kind, _reflected, _to: (
        not (kind in {"table", "index"} and str(name).startswith(("sample_p", "ix_sample_p")))
    ),
)
with context.begin_transaction():
    context.run_migrations()
