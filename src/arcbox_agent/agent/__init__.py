"""The daemon in the guest."""
