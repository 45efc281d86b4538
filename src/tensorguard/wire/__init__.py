"""Messages that cross processes: pure, bounded, shared by platform, serving, agent and SDK."""
