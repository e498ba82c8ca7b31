"""Sockets to calls."""
