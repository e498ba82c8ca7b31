"""Serves one virtual machine, and ends when that does."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys

from tests.vm.vsock_backend.device import VsockDevice
from tests.vm.vsock_backend.poller import READ, Poller
from tests.vm.vsock_backend.vhost_user import VhostUserSession

#: Seconds that the host's readers have, once the guest is gone, to take what it sent.
PARTING = 10.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="vsock_backend", description=__doc__)
    parser.add_argument("--vhost-user", required=True, help="unix socket that QEMU connects to")
    parser.add_argument("--unix", required=True, help="unix socket for the host's programs")
    parser.add_argument("--cid", type=int, default=3, help="the guest's")
    options = parser.parse_args()

    poller = Poller()
    device = VsockDevice(poller, options.cid, options.unix)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(options.vhost_user)
    listener.listen(1)
    sessions: list[VhostUserSession] = []

    def accept(events: int) -> None:
        sock, _ = listener.accept()
        poller.forget(listener.fileno())
        listener.close()
        sessions.append(VhostUserSession(sock, device, poller))

    poller.watch(listener.fileno(), READ, accept)
    stopping: list[int] = []
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    poller.watch(wake_read, READ, lambda events: None)

    print("ready", flush=True)
    while not stopping and not any(session.ended for session in sessions):
        poller.run_once(1.0)
        device.work()
        device.drop_late()
    device.close(PARTING)
    for path in (options.unix, options.vhost_user):
        os.unlink(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
