"""Create fleets, devices, enrolments, roots, certificates and used assertions."""

import sqlalchemy as sa
from alembic import op

from tensorguard.platform.db.base import UtcDateTime

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def _to(target: str, table: str) -> sa.ForeignKey:
    return sa.ForeignKey(f"{target}.id", name=f"fk_{table}_{target}_id_{target}")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "fleet",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.String(36), _to("tenant", "fleet"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_fleet"),
        sa.UniqueConstraint("tenant_id", "name", name="uq_fleet_tenant_id_name"),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.String(36), _to("tenant", "device"), nullable=False),
        sa.Column("fleet_id", sa.String(36), _to("fleet", "device"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("public_key", sa.LargeBinary(), nullable=False),
        sa.Column("key_sha256", sa.String(64), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("revoked", UtcDateTime(), nullable=True),
        sa.Column("revocation_reason", sa.String(200), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_device"),
        sa.UniqueConstraint("tenant_id", "key_sha256", name="uq_device_tenant_id_key_sha256"),
    )
    op.create_index("ix_device_tenant_id_id", "device", ["tenant_id", "id"])
    op.create_index("ix_device_fleet_id", "device", ["fleet_id"])
    _create_enrolment()
    _create_certificates()


def _create_enrolment() -> None:
    op.create_table(
        "enrolment",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.String(36), _to("tenant", "enrolment"), nullable=False),
        sa.Column("fleet_id", sa.String(36), _to("fleet", "enrolment"), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("created_by", sa.String(128), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("expires", UtcDateTime(), nullable=False),
        sa.Column("redeemed", UtcDateTime(), nullable=True),
        sa.Column("device_id", sa.String(36), _to("device", "enrolment"), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_enrolment"),
        sa.UniqueConstraint("token_hash", name="uq_enrolment_token_hash"),
    )
    op.create_index("ix_enrolment_tenant_id_id", "enrolment", ["tenant_id", "id"])


def _create_certificates() -> None:
    op.create_table(
        "fleet_root",
        sa.Column("tenant_id", sa.String(36), _to("tenant", "fleet_root"), nullable=False),
        sa.Column("key_id", sa.String(63), nullable=False),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("not_after", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_fleet_root"),
    )
    op.create_table(
        "certificate",
        sa.Column("serial", sa.String(40), nullable=False),
        sa.Column("tenant_id", sa.String(36), _to("tenant", "certificate"), nullable=False),
        sa.Column("device_id", sa.String(36), _to("device", "certificate"), nullable=False),
        sa.Column("not_before", UtcDateTime(), nullable=False),
        sa.Column("not_after", UtcDateTime(), nullable=False),
        sa.Column("revoked", UtcDateTime(), nullable=True),
        sa.Column("pem", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("serial", name="pk_certificate"),
    )
    op.create_index("ix_certificate_tenant_id_serial", "certificate", ["tenant_id", "serial"])
    op.create_index("ix_certificate_device_id_not_after", "certificate", ["device_id", "not_after"])
    op.create_table(
        "used_assertion",
        sa.Column("device_id", sa.String(36), _to("device", "used_assertion"), nullable=False),
        sa.Column("jti_sha256", sa.String(64), nullable=False),
        sa.Column("tenant_id", sa.String(36), _to("tenant", "used_assertion"), nullable=False),
        sa.Column("expires", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("device_id", "jti_sha256", name="pk_used_assertion"),
    )


def downgrade() -> None:
    """Drop the tables."""
    for table in ("used_assertion", "certificate", "fleet_root", "enrolment", "device", "fleet"):
        op.drop_table(table)
