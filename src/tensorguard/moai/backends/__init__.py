"""Backends evaluate packs on ciphertexts. None of them can make or use a secret key."""
