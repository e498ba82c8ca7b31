"""The agent's own log, and what it tells its service manager."""
