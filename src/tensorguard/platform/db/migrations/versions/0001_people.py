"""Create tenants, people, sessions, API tokens, login failures and idempotency records."""

import sqlalchemy as sa
from alembic import op

from tensorguard.platform.db.base import UtcDateTime

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def _tenant(table: str) -> sa.ForeignKey:
    return sa.ForeignKey("tenant.id", name=f"fk_{table}_tenant_id_tenant")


def upgrade() -> None:
    """Create the tables."""
    op.create_table(
        "tenant",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenant"),
        sa.UniqueConstraint("name", name="uq_tenant_name"),
    )
    op.create_table(
        "user_account",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.String(36), _tenant("user_account"), nullable=False),
        sa.Column("username", sa.String(64), nullable=False),
        sa.Column("password_hash", sa.String(255), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.Column("disabled", sa.Boolean(), nullable=False),
        sa.Column("failed_logins", sa.Integer(), nullable=False),
        sa.Column("locked_until", UtcDateTime(), nullable=True),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_user_account"),
        sa.UniqueConstraint("tenant_id", "username", name="uq_user_account_tenant_id_username"),
    )
    _create_credentials()
    op.create_table(
        "login_failure",
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("failures", sa.Integer(), nullable=False),
        sa.Column("last", UtcDateTime(), nullable=False),
        sa.Column("locked_until", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("key", name="pk_login_failure"),
    )
    op.create_index("ix_login_failure_last", "login_failure", ["last"])
    op.create_table(
        "idempotency_record",
        sa.Column("tenant_id", sa.String(36), _tenant("idempotency_record"), nullable=False),
        sa.Column("actor", sa.String(128), nullable=False),
        sa.Column("key", sa.String(128), nullable=False),
        sa.Column("fingerprint", sa.String(64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("expires", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("tenant_id", "actor", "key", name="pk_idempotency_record"),
    )
    op.create_index("ix_idempotency_record_expires", "idempotency_record", ["expires"])


def _create_credentials() -> None:
    user = sa.ForeignKey("user_account.id", name="fk_user_session_user_id_user_account")
    op.create_table(
        "user_session",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.String(36), _tenant("user_session"), nullable=False),
        sa.Column("user_id", sa.String(36), user, nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("expires", UtcDateTime(), nullable=False),
        sa.Column("last_used", UtcDateTime(), nullable=False),
        sa.Column("revoked", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_user_session"),
        sa.UniqueConstraint("token_hash", name="uq_user_session_token_hash"),
    )
    op.create_index("ix_user_session_user_id", "user_session", ["user_id"])
    op.create_index("ix_user_session_expires", "user_session", ["expires"])
    creator = sa.ForeignKey("user_account.id", name="fk_api_token_created_by_user_account")
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("tenant_id", sa.String(36), _tenant("api_token"), nullable=False),
        sa.Column("name", sa.String(64), nullable=False),
        sa.Column("token_hash", sa.String(64), nullable=False),
        sa.Column("scopes", sa.String(512), nullable=False),
        sa.Column("created_by", sa.String(36), creator, nullable=False),
        sa.Column("device_id", sa.String(36), nullable=True),
        sa.Column("created", UtcDateTime(), nullable=False),
        sa.Column("expires", UtcDateTime(), nullable=False),
        sa.Column("last_used", UtcDateTime(), nullable=True),
        sa.Column("revoked", UtcDateTime(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_token"),
        sa.UniqueConstraint("token_hash", name="uq_api_token_token_hash"),
    )
    op.create_index("ix_api_token_tenant_id_id", "api_token", ["tenant_id", "id"])
    op.create_index("ix_api_token_device_id", "api_token", ["device_id"])


def downgrade() -> None:
    """Drop the tables."""
    for table in (
        "idempotency_record",
        "login_failure",
        "api_token",
        "user_session",
        "user_account",
        "tenant",
    ):
        op.drop_table(table)
