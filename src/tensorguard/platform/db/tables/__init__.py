"""Every table of the platform; importing this package fills the metadata."""

from tensorguard.platform.db.tables import audit, devices, packs, people, telemetry

__all__ = ["audit", "devices", "packs", "people", "telemetry"]
