"""Connections between the host and addresses in the guest, each as a stream of frames."""
