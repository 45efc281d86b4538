"""Create values that are no numbers, refused samples, and each tenant's policy."""

import sqlalchemy as sa
from alembic import op

from tensorguard.platform.db.base import BigInt, UtcDateTime

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "document",
        sa.Column("series_id", BigInt, nullable=False),
        sa.Column("ts", BigInt, nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("series_id", "ts", name="pk_document"),
        postgresql_partition_by="RANGE (ts)",
        sqlite_with_rowid=False,
    )
    tenant = sa.ForeignKey("tenant.id", name="fk_submission_tenant_id_tenant")
    op.create_table(
        "submission",
        sa.Column("id", BigInt, autoincrement=True, nullable=False),
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("device_id", sa.String(36), nullable=True),
        sa.Column("principal", sa.String(128), nullable=False),
        sa.Column("media", sa.String(64), nullable=False),
        sa.Column("received", UtcDateTime(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_submission"),
    )
    op.create_index("ix_submission_tenant_id_id", "submission", ["tenant_id", "id"])
    op.create_index("ix_submission_received", "submission", ["received"])
    tenant = sa.ForeignKey("tenant.id", name="fk_telemetry_policy_tenant_id_tenant")
    op.create_table(
        "telemetry_policy",
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("retention_days", BigInt, nullable=True),
        sa.Column("device_rate", BigInt, nullable=True),
        sa.Column("tenant_rate", BigInt, nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_telemetry_policy"),
    )


def downgrade() -> None:
    """Drop the tables, with every partition."""
    op.drop_table("telemetry_policy")
    op.drop_table("submission")
    op.drop_table("document")
