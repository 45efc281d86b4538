"""Telemetry in and out: acknowledged after commit, stored once."""
