"""Create series, samples, newest values and stored batches."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from tensorguard.platform.db.base import BigInt, UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    _series()
    op.create_table(
        "sample",
        sa.Column("series_id", BigInt, nullable=False),
        sa.Column("ts", BigInt, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series_id", "ts", name="pk_sample"),
        postgresql_partition_by="RANGE (ts)",
        sqlite_with_rowid=False,
    )
    series = sa.ForeignKey("series.id", name="fk_latest_series_id_series")
    op.create_table(
        "latest",
        sa.Column("series_id", BigInt, series, autoincrement=False, nullable=False),
        sa.Column("ts", BigInt, nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("series_id", name="pk_latest"),
    )
    tenant = sa.ForeignKey("tenant.id", name="fk_ingest_batch_tenant_id_tenant")
    op.create_table(
        "ingest_batch",
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("principal", sa.String(128), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("received", UtcDateTime(), nullable=False),
        sa.Column("accepted", BigInt, nullable=False),
        sa.Column("duplicates", BigInt, nullable=False),
        sa.Column("rejected", BigInt, nullable=False),
        sa.Column("rejections", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "principal", "key", name="pk_ingest_batch"),
    )
    op.create_index("ix_ingest_batch_received", "ingest_batch", ["received"])


def _series() -> None:
    tenant = sa.ForeignKey("tenant.id", name="fk_series_tenant_id_tenant")
    op.create_table(
        "series",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("device_id", sa.String(36), nullable=True),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("unit", sa.String(63), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("labels", sa.JSON().with_variant(JSONB(), "postgresql"), nullable=False),
        sa.Column("key", sa.LargeBinary(), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_series"),
        sa.UniqueConstraint("tenant_id", "key", name="uq_series_tenant_id_key"),
    )
    op.create_index("ix_series_tenant_id_name_id", "series", ["tenant_id", "name", "id"])
    op.create_index("ix_series_tenant_id_device_id_id", "series", ["tenant_id", "device_id", "id"])
    op.create_index(
        "ix_series_labels",
        "series",
        ["labels"],
        postgresql_using="gin",
        postgresql_ops={"labels": "jsonb_path_ops"},
        sqlite_where=sa.text("0"),  # SQLite cannot use it: it stays empty there
    )


def downgrade() -> None:
    """Drop the tables, with every partition."""
    op.drop_table("ingest_batch")
    op.drop_table("latest")
    op.drop_table("sample")
    op.drop_table("series")
