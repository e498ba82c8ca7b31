"""Containers that are plain processes."""
