"""Reports the agent's state to the service manager by systemd's sd_notify protocol.

A report is one datagram of `KEY=VALUE` lines to the socket that NOTIFY_SOCKET names.
Without NOTIFY_SOCKET nothing is sent.
"""

from __future__ import annotations

import os
import socket


class Notifier:
    """The service manager's socket, if there is one."""

    __slots__ = ("address", "watchdog_interval")

    def __init__(self, environment: os._Environ[str] | dict[str, str] = os.environ) -> None:
        # Removed from the environment, so that no child of the agent can report in its name.
        self.address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        #: Seconds between two WATCHDOG=1; 0: none is sent.  It is half of the service manager's
        #: time-out, as sd_watchdog_enabled(3) advises.
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
                # A service manager that hangs must not block the agent.
                sender.setblocking(False)
                sender.sendto(text.encode(), address)
        except OSError:
            # The service manager has time-outs of its own for reports that do not arrive.
            pass
