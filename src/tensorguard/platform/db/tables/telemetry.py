"""Series, samples and the newest values. A sample is (series, time): a second one is a duplicate.

On PostgreSQL `sample` and `document` are partitioned by day of `ts`; the partitions
`sample_pYYYYMMDD` and `document_pYYYYMMDD` are made by the intake when the first sample of a day
comes, so that old days can be dropped whole.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    Double,
    ForeignKey,
    Index,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from tensorguard.platform.db.base import ID_LENGTH, Base, BigId, BigInt, StrId, Time
from tensorguard.wire.telemetry import MAX_NAME, MAX_UNIT

MAX_KIND = 16
MAX_PRINCIPAL = 128
MAX_MEDIA = 64

Labels = JSON().with_variant(JSONB(), "postgresql")


class Series(Base):
    """What is measured, in which unit, by whom. `key` is the SHA-256 of all that identifies it.

    `device_id` is set if and only if the credentials of that device wrote the series.
    """

    __tablename__ = "series"
    __table_args__ = (
        UniqueConstraint("tenant_id", "key"),
        Index("ix_series_tenant_id_name_id", "tenant_id", "name", "id"),
        Index("ix_series_tenant_id_device_id_id", "tenant_id", "device_id", "id"),
        Index(
            "ix_series_labels",
            "labels",
            postgresql_using="gin",
            postgresql_ops={"labels": "jsonb_path_ops"},
            sqlite_where=text("0"),  # SQLite cannot use it: it stays empty there
        ),
    )

    id: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    device_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    name: Mapped[str] = mapped_column(String(MAX_NAME))
    unit: Mapped[str] = mapped_column(String(MAX_UNIT))
    kind: Mapped[str] = mapped_column(String(MAX_KIND))
    labels: Mapped[dict[str, str]] = mapped_column(Labels)
    key: Mapped[bytes] = mapped_column(LargeBinary)
    created: Mapped[Time]


class SampleRow(Base):
    """One number. No foreign key: it would cost more than the insert itself."""

    __tablename__ = "sample"
    __table_args__ = ({"postgresql_partition_by": "RANGE (ts)", "sqlite_with_rowid": False},)

    series_id: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=False)
    ts: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[float] = mapped_column(Double)


class DocumentRow(Base):
    """One value that is no number: text, a truth, a histogram or a summary, as JSON."""

    __tablename__ = "document"
    __table_args__ = ({"postgresql_partition_by": "RANGE (ts)", "sqlite_with_rowid": False},)

    series_id: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=False)
    ts: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[str] = mapped_column(Text)


class Latest(Base):
    """The newest sample of each series; it only moves forward in time."""

    __tablename__ = "latest"

    series_id: Mapped[BigId] = mapped_column(
        ForeignKey("series.id"), primary_key=True, autoincrement=False
    )
    ts: Mapped[BigId]
    value: Mapped[float] = mapped_column(Double)


class IngestBatch(Base):
    """A batch that was stored, and the answer that it got: a retry gets the same."""

    __tablename__ = "ingest_batch"
    __table_args__ = (Index("ix_ingest_batch_received", "received"),)

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    principal: Mapped[str] = mapped_column(String(MAX_PRINCIPAL), primary_key=True)
    key: Mapped[bytes] = mapped_column(LargeBinary, primary_key=True)
    body: Mapped[bytes] = mapped_column(LargeBinary)  # SHA-256 of the decompressed body
    received: Mapped[Time]
    accepted: Mapped[BigId]
    duplicates: Mapped[BigId]
    rejected: Mapped[BigId]
    rejections: Mapped[str] = mapped_column(Text)  # the listed ones, as JSON


class Submission(Base):
    """What was refused for good, as a request that can be sent again: the dead letters."""

    __tablename__ = "submission"
    __table_args__ = (
        Index("ix_submission_tenant_id_id", "tenant_id", "id"),
        Index("ix_submission_received", "received"),
    )

    id: Mapped[BigId] = mapped_column(primary_key=True, autoincrement=True)
    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"))
    device_id: Mapped[str | None] = mapped_column(String(ID_LENGTH))
    principal: Mapped[str] = mapped_column(String(MAX_PRINCIPAL))
    media: Mapped[str] = mapped_column(String(MAX_MEDIA))
    received: Mapped[Time]
    reason: Mapped[str] = mapped_column(Text)
    payload: Mapped[bytes | None] = mapped_column(LargeBinary)  # None: too large to keep


class TelemetryPolicy(Base):
    """What one tenant may send and how long it is kept; None means what the settings say."""

    __tablename__ = "telemetry_policy"

    tenant_id: Mapped[StrId] = mapped_column(ForeignKey("tenant.id"), primary_key=True)
    retention_days: Mapped[int | None] = mapped_column(BigInt)
    device_rate: Mapped[int | None] = mapped_column(BigInt)  # samples a second
    tenant_rate: Mapped[int | None] = mapped_column(BigInt)
