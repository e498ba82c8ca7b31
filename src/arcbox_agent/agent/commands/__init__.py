"""Commands that run for a client."""
