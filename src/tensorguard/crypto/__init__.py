"""Signatures, canonical encodings and safe files: thin over `cryptography`."""
