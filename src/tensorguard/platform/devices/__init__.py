"""Fleets, devices and their enrolment."""
