"""Container logs in the agent: capture and following."""
