"""Benches measure, in one run and interleaved, what the documentation claims."""
