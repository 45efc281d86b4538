"""Tokens for devices and grants for serving (RFC 6749, 7523, 8693)."""
