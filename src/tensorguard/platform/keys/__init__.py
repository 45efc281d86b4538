"""Keyrings: which keys a tenant has, when they rotate, and who used them."""
