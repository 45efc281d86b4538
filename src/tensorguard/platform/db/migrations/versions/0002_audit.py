"""Create the audit trail."""

import sqlalchemy as sa
from alembic import op

from tensorguard.platform.db.base import BigInt, UtcDateTime

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the tables."""
    tenant = sa.ForeignKey("tenant.id", name="fk_audit_chain_tenant_id_tenant")
    op.create_table(
        "audit_chain",
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_audit_chain"),
    )
    tenant = sa.ForeignKey("tenant.id", name="fk_audit_event_tenant_id_tenant")
    op.create_table(
        "audit_event",
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("time", UtcDateTime(), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("action", sa.String(64), nullable=False),
        sa.Column("subject", sa.String(256), nullable=False),
        sa.Column("details", sa.Text(), nullable=False),
        sa.Column("request_id", sa.String(64), nullable=False),
        sa.Column("previous", sa.String(64), nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "seq", name="pk_audit_event"),
    )
    tenant = sa.ForeignKey("tenant.id", name="fk_audit_head_tenant_id_tenant")
    op.create_table(
        "audit_head",
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("seq", BigInt, nullable=False),
        sa.Column("hash", sa.String(64), nullable=False),
        sa.Column("time", UtcDateTime(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "seq", name="pk_audit_head"),
    )


def downgrade() -> None:
    """Drop the tables."""
    op.drop_table("audit_head")
    op.drop_table("audit_event")
    op.drop_table("audit_chain")
