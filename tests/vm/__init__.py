"""The agent in a virtual machine that boots here, over real AF_VSOCK."""
