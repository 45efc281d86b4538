"""People: accounts, sessions, API tokens."""
