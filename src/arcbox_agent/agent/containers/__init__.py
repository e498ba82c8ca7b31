"""Containers: their model, their state on disk, and the runtimes that run them."""
