"""Standard streams: what a child gets for stdin, stdout and stderr, and our ends of them.

RUN_DIR/containers/ID/stdout, stderr   FIFOs of a container (without a terminal)
RUN_DIR/containers/ID/stdin            FIFO (open_stdin)
"""

from __future__ import annotations

import os
import struct
from fcntl import ioctl
from termios import TIOCSWINSZ

#: Without a size of its own a terminal has this one: rows, columns.
TERMINAL_SIZE = (24, 80)


#: Modes of standard streams.  A program may change its user and open /dev/stdout again, so the mode lets
#: everybody do what the descriptor allows.  Who cannot look into /proc/PID/fd of such a program does not
#: reach a pipe or a FIFO; a terminal has a name in /dev/pts, and is writable for all as after `mesg y`.
INPUT_MODE, OUTPUT_MODE = 0o644, 0o622


def open_terminal(uid: int, rows: int = 0, columns: int = 0) -> tuple[int, int]:
    """A terminal that `uid` may open again (-1: the agent's user): its master, for us, and its slave, for a child."""
    master, slave = os.openpty()
    try:
        size = (rows or TERMINAL_SIZE[0], columns or TERMINAL_SIZE[1])
        ioctl(master, TIOCSWINSZ, struct.pack("HHHH", *size, 0, 0))
        os.fchown(slave, uid, -1)
        os.fchmod(slave, OUTPUT_MODE)
    except BaseException:
        os.close(master)
        os.close(slave)
        raise
    return master, slave


class ContainerStdio:
    """The standard streams of a container: FIFOs, or a terminal.

    A container has its FIFOs open for reading too.  So while the agent is dead it is its own
    reader, and meets neither SIGPIPE nor the end of its input.
    """

    __slots__ = ("_child", "_kept", "fifos", "master")

    def __init__(self) -> None:
        self._child: list[int] = []
        #: The reading ends of the FIFOs, which must outlive the agent.
        self._kept: list[int] = []
        #: What to capture: the path of each FIFO by the stream's name, or the master of the terminal.
        self.fifos: dict[str, str] = {}
        self.master: int | None = None

    def open(self, run_path: str, uid: int, *, terminal: bool, stdin: bool) -> None:
        """Open all of it.  OSError: `close` closes what was opened.  For a thread."""
        if terminal:
            self.master, slave = open_terminal(uid)
            self._child += (slave, slave, slave)
            return
        for name in ("stdin", "stdout", "stderr"):
            if name == "stdin" and not stdin:
                self._child.append(os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC))
                continue
            fifo = os.path.join(run_path, name)
            # A new one each time: something of the last run may still have the old one open.
            try:
                os.unlink(fifo)
            except FileNotFoundError:
                pass
            os.mkfifo(fifo, 0o600)
            if name != "stdin":
                self.fifos[name] = fifo
                self._kept.append(os.open(fifo, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
            self._child.append(os.open(fifo, os.O_RDWR | os.O_CLOEXEC))
            os.fchown(self._child[-1], uid, -1)
            os.fchmod(self._child[-1], INPUT_MODE if name == "stdin" else OUTPUT_MODE)

    def for_child(self) -> tuple[int, int, int]:
        """The child's descriptors, which are the caller's from here on."""
        stdin, stdout, stderr = self._child
        self._child.clear()
        return stdin, stdout, stderr

    def for_keeper(self) -> list[int]:
        """What must outlive the agent: descriptors, which are the caller's from here on."""
        fds = [*self._kept, *([self.master] if self.master is not None else [])]
        self._kept.clear()
        self.master = None
        return fds

    def close(self) -> None:
        for fd in {*self._child, *self.for_keeper()}:
            os.close(fd)
        self._child.clear()
