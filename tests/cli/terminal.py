"""A terminal that arcboxctl runs on: a pty that is its controlling terminal, and a person's end of it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time

from tests.cli.conftest import ARCBOXCTL, environment
from tests.conftest import PATIENCE

ROWS, COLUMNS = 50, 132


class Terminal:
    """A person's end of a terminal that arcboxctl runs on."""

    def __init__(self, address: str, *arguments: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        # Without these, which a test run may have set, the size is the terminal's own.
        env = {name: value for name, value in environment(address).items() if name not in ("COLUMNS", "LINES")}
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *ARCBOXCTL, *arguments], stdin=slave, stdout=slave, stderr=slave, env=env
        )
        os.close(slave)
        self.seen = b""

    def arcboxctl(self) -> int:
        """arcboxctl's own process id: setsid(1) forks where it leads a group."""
        children = subprocess.run(
            ["ps", "--ppid", str(self.process.pid), "-o", "pid="], capture_output=True, text=True, check=False
        )
        return int(children.stdout.split()[0]) if children.stdout.split() else self.process.pid

    def type(self, keys: bytes) -> None:
        os.write(self.master, keys)

    def read_until(self, text: bytes) -> bytes:
        """What it shows, up to `text` or its end."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.seen and time.monotonic() < deadline:
            if select.select([self.master], [], [], 0.1)[0]:
                try:
                    self.seen += os.read(self.master, 4096)
                except OSError:
                    break  # EIO: the other end is closed
        before, found, self.seen = self.seen.partition(text)
        return before + found

    def read_all(self) -> bytes:
        shown = self.read_until(b"\0no such thing\0")
        self.process.wait(PATIENCE)
        return shown

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.master)
