"""Reports the agent's state to the service manager by systemd's sd_notify protocol.

A report is one message of `KEY=VALUE` lines to the socket that NOTIFY_SOCKET names: a path,
`@abstract`, or `vsock:CID:PORT` of the host, where `vsock-stream:`, `vsock-dgram:` and
`vsock-seqpacket:` name the kind of socket.  Without NOTIFY_SOCKET nothing is sent.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections import deque

from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.agent.observe.rate import OncePerMinute

log = Logger("notify")

#: Kinds of sockets, in the order in which they are tried.
_VSOCK = {
    "vsock": (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET, socket.SOCK_STREAM),
    "vsock-dgram": (socket.SOCK_DGRAM,),
    "vsock-seqpacket": (socket.SOCK_SEQPACKET,),
    "vsock-stream": (socket.SOCK_STREAM,),
}
#: What socket(2) says where the kernel or the hypervisor has no such kind.
_NO_SUCH_KIND = (errno.ENODEV, errno.EPROTONOSUPPORT, errno.ESOCKTNOSUPPORT, errno.EOPNOTSUPP, errno.EAFNOSUPPORT)

#: Seconds for each step of a report over vsock: to connect, to send, and until the host has read it.
_VSOCK_TIMEOUT = 5.0

#: Reports over vsock that wait at most; a host that takes none loses the oldest.
_WAITING = 8

#: A host may trust only such ports of a guest: none but root binds one.
_PRIVILEGED = range(1023, 511, -1)

_failed_log = OncePerMinute()


def parse_vsock(address: str) -> tuple[tuple[int, ...], int, int] | None:
    """The kinds of sockets to try, the cid and the port; None: it is no such address."""
    kind, _, rest = address.partition(":")
    cid, _, port = rest.partition(":")
    if kind not in _VSOCK or not all(part.isascii() and part.isdigit() and len(part) < 11 for part in (cid, port)):
        return None
    numbers = int(cid), int(port)
    # The largest number stands for any, and names nobody.
    return (_VSOCK[kind], *numbers) if max(numbers) < 0xFFFFFFFF else None


class Notifier:
    """The service manager's socket, if there is one."""

    __slots__ = ("_lock", "_sending", "_vsock", "_waiting", "address", "watchdog_interval")

    def __init__(self, environment: os._Environ[str] | dict[str, str] = os.environ) -> None:
        # Removed from the environment, so that no child of the agent can report in its name.
        self.address = environment.pop("NOTIFY_SOCKET", "")
        microseconds = environment.pop("WATCHDOG_USEC", "")
        pid = environment.pop("WATCHDOG_PID", "")
        mine = not pid or pid == str(os.getpid())
        #: Seconds between two WATCHDOG=1; 0: none is sent.  It is half of the service manager's
        #: time-out, as sd_watchdog_enabled(3) advises.
        self.watchdog_interval = int(microseconds) / 2e6 if microseconds.isdigit() and mine else 0.0
        self._vsock = parse_vsock(self.address)
        self._lock = threading.Lock()
        self._waiting: deque[str] = deque(maxlen=_WAITING)
        self._sending = False
        if self.address and self._vsock is None and not self.address.startswith(("/", "@")):
            log.warning("NOTIFY_SOCKET is of no known kind: nothing is reported", address=self.address)
            self.address = ""

    def ready(self, status: str) -> None:
        self._send(f"READY=1\nSTATUS={status}\nMAINPID={os.getpid()}")

    def stopping(self, status: str) -> None:
        self._send(f"STOPPING=1\nSTATUS={status}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    def _send(self, text: str) -> None:
        if not self.address:
            return
        if self._vsock is not None:
            self._send_later(text)
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

    # ------------------------------------------------------------------- vsock

    def _send_later(self, text: str) -> None:
        """In a thread, one report after the other: to connect over vsock takes as long as the host likes."""
        with self._lock:
            self._waiting.append(text)
            if self._sending:
                return
            self._sending = True
        try:
            # A thread that does not keep the process from ending.
            threading.Thread(target=self._send_waiting, name="notify", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            self._sending = False
            self._tell(error)

    def _send_waiting(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._sending = False
                    return
                text = self._waiting.popleft()
            try:
                self._send_over_vsock(text.encode())
            except OSError as error:
                self._tell(error)

    def _tell(self, error: Exception) -> None:
        text = "the host cannot be told of the agent's state"
        _failed_log.log(log.warning, text, "also_failed", address=self.address, error=error)

    def _send_over_vsock(self, octets: bytes) -> None:
        assert self._vsock is not None
        kinds, cid, port = self._vsock
        kind, sender = _open(kinds)
        with sender:
            sender.settimeout(_VSOCK_TIMEOUT)
            _bind_privileged(sender)
            if kind == socket.SOCK_DGRAM:
                sender.sendto(octets, (cid, port))
                return
            sender.connect((cid, port))
            sender.sendall(octets)
            # The end of the message is the end of the stream, and the host closes when it has read that.
            sender.shutdown(socket.SHUT_WR)
            sender.recv(1)


def _open(kinds: tuple[int, ...]) -> tuple[int, socket.socket]:
    """The first kind of socket that there is here."""
    *others, last = kinds
    for kind in others:
        try:
            return kind, socket.socket(socket.AF_VSOCK, kind | socket.SOCK_CLOEXEC)
        except OSError as error:
            if error.errno not in _NO_SUCH_KIND:
                raise
    return last, socket.socket(socket.AF_VSOCK, last | socket.SOCK_CLOEXEC)


def _bind_privileged(sender: socket.socket) -> None:
    for port in _PRIVILEGED:
        try:
            sender.bind((socket.VMADDR_CID_ANY, port))
            return
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return  # not root: from any port, then
