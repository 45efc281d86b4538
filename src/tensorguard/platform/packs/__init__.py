"""The registry of model packs."""
