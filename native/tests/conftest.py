"""These tests fail, and are never skipped, where the native distribution is not installed."""

import tensorguard_moai_native  # noqa: F401 -- its absence is an error of the whole run
