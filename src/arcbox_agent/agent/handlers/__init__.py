"""What the agent answers to each request: typed request in, typed reply out."""
