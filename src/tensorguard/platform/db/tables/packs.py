"""Registered model packs."""
