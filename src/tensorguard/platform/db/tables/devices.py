"""Fleets, devices, enrolment and certificates."""
