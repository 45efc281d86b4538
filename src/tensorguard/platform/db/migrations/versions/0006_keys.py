"""Create keyrings, sealed tenant secrets and the roots that a rotation replaced."""

import sqlalchemy as sa
from alembic import op

from tensorguard.platform.db.base import BigInt, UtcDateTime

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def _tenant(table: str) -> sa.Column[str]:
    key = sa.ForeignKey("tenant.id", name=f"fk_{table}_tenant_id_tenant")
    return sa.Column("tenant_id", sa.String(36), key, nullable=False)


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "keyring",
        _tenant("keyring"),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("key_id", sa.String(63), nullable=False),
        sa.Column("purpose", sa.String(16), nullable=False),
        sa.Column("algorithm", sa.String(24), nullable=False),
        sa.Column("managed", sa.Boolean(), nullable=False),
        sa.Column("period", BigInt, nullable=True),
        sa.Column("overlap", BigInt, nullable=True),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="pk_keyring"),
        sa.UniqueConstraint("key_id", name="uq_keyring_key_id"),
    )
    op.create_table(
        "keyring_version",
        sa.Column("tenant_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(40), nullable=False),
        sa.Column("version", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("activated", UtcDateTime(), nullable=False),
        sa.Column("replaced", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("tenant_id", "name", "version", name="pk_keyring_version"),
        sa.ForeignKeyConstraint(
            ["tenant_id", "name"],
            ["keyring.tenant_id", "keyring.name"],
            name="fk_keyring_version_tenant_id_keyring",
        ),
    )
    op.create_table(
        "tenant_secret",
        _tenant("tenant_secret"),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("key_version", sa.Integer(), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("updated", UtcDateTime(), nullable=False),
        sa.Column("updated_by", sa.String(128), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "name", name="pk_tenant_secret"),
    )
    op.create_index("ix_tenant_secret_key_version", "tenant_secret", ["key_version"])
    op.create_table(
        "replaced_root",
        _tenant("replaced_root"),
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("key_id", sa.String(63), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("not_after", UtcDateTime(), nullable=False),
        sa.Column("replaced", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "sha256", name="pk_replaced_root"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("replaced_root", "tenant_secret", "keyring_version", "keyring"):
        op.drop_table(table)
