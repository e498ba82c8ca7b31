"""Waits that the agent does for a client: until one thing in the guest or in a container holds."""
