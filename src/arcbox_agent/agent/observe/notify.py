"""Tells the service manager how the agent is: systemd's sd_notify protocol.

One datagram of `KEY=VALUE` lines to the socket that NOTIFY_SOCKET names.  Where it
names none, nobody wants to know.
"""

from __future__ import annotations

import os
import socket


class Notifier:
    """The service manager's socket, if there is one."""

    __slots__ = ("address", "watchdog_interval")

    def __init__(self, environment: os._Environ[str] | dict[str, str] = os.environ) -> None:
        # Taken out of the environment, so that nothing the agent starts can speak for it.
        self.address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        #: How often WATCHDOG=1 must be sent, in seconds; 0: never.  Half of what the
        #: service manager waits, as sd_watchdog_enabled(3) advises.
        self.watchdog_interval = int(microseconds) / 2e6 if microseconds.isdigit() and mine else 0.0

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self.address:
            return
        # "@name" is the abstract socket "\0name".
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
                # A service manager that is stuck must not stop the agent too.
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError:
            # Nobody to tell that nobody can be told; the service manager has its own time-outs.
            pass
