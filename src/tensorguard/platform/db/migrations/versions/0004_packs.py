"""Create the registry of model packs."""

import sqlalchemy as sa
from alembic import op

from tensorguard.platform.db.base import BigInt, UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create the table."""
    tenant = sa.ForeignKey("tenant.id", name="fk_pack_tenant_id_tenant")
    op.create_table(
        "pack",
        sa.Column("tenant_id", sa.String(36), tenant, nullable=False),
        sa.Column("pack_id", sa.String(64), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("version", sa.String(64), nullable=False),
        sa.Column("size", BigInt, nullable=False),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("signer_name", sa.String(64), nullable=False),
        sa.Column("signer_key_id", sa.String(64), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("retired", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "pack_id", name="pk_pack"),
    )
    op.create_index(
        "ix_pack_tenant_id_retired_created", "pack", ["tenant_id", "retired", "created"]
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("pack")
