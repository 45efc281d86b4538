"""Every table of the platform; importing this package fills the metadata."""

from tensorguard.platform.db.tables import audit, devices, keys, packs, people, telemetry

__all__ = ["audit", "devices", "keys", "packs", "people", "telemetry"]
