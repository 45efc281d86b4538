"""Credentials of integrations that tenants store: sealed, used by the platform, never shown."""
