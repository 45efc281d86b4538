"""Series, samples and the newest values."""
