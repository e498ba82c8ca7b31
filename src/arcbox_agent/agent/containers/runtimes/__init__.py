"""What runs a container: one folder a runtime."""
