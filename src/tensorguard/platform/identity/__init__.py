"""The fleet CA and the certificates that it issued."""
