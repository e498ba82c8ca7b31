"""QEMU's control socket: one command, one answer, each within a bounded time."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path
from typing import Any


class QmpError(Exception):
    """QEMU refused a command, or does not answer."""


class Qmp:
    """`with Qmp(path) as qemu: qemu.command("query-status")`"""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._timeout = timeout
        self._received = b""
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(str(path))
            self._message(time.monotonic() + timeout)  # its greeting
            self.command("qmp_capabilities")
        except OSError as error:
            self._socket.close()
            raise QmpError(f"no QEMU at {path}: {error}") from error
        except BaseException:
            self._socket.close()
            raise

    def command(self, name: str, **arguments: Any) -> Any:
        """What it returns.  Events that come meanwhile are passed over."""
        deadline = time.monotonic() + self._timeout
        try:
            self._socket.sendall(json.dumps({"execute": name, "arguments": arguments}).encode())
            while True:
                message = self._message(deadline)
                if "error" in message:
                    raise QmpError(f"{name}: {message['error']['desc']}")
                if "return" in message:
                    return message["return"]
        except OSError as error:
            raise QmpError(f"{name}: QEMU does not answer: {error}") from error

    def human(self, line: str) -> str:
        """A command of the monitor for people, which shows what has no command of its own."""
        return str(self.command("human-monitor-command", **{"command-line": line}))

    def press(self, *keys: str) -> None:
        """On the guest's keyboard, all at once."""
        self.command("send-key", keys=[{"type": "qcode", "data": key} for key in keys])

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._received:
            self._socket.settimeout(max(deadline - time.monotonic(), 0.001))
            block = self._socket.recv(1 << 16)
            if not block:
                raise QmpError("QEMU has hung up")
            self._received += block
        line, _, self._received = self._received.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Qmp:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
