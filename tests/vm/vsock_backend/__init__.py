"""A vhost-user backend of virtio-vsock: the host's side of a guest's AF_VSOCK.

For hosts without /dev/vhost-vsock.  Like Firecracker and Cloud Hypervisor it gives the
host a unix socket: connect, send `CONNECT PORT\\n`, read `OK HOSTPORT\\n`, then bytes.
A connection of the guest to the host's port P arrives at the unix socket `PATH_P`.

    vhost_user   QEMU's requests: where the guest's memory and queues are
    memory       the guest's memory, mapped
    virtqueue    the rings in it
    packets      the header of a vsock packet
    connection   one stream: its state, its credit, its host socket
    device       queues and connections, brought together
    poller       one epoll instance and the callbacks behind it

    python -m tests.vm.vsock_backend --vhost-user vu.sock --unix vsock.sock --cid 3
"""
