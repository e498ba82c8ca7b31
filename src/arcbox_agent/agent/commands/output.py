"""Our end of one stream of a command's output: a pipe, or the master of a terminal."""

from __future__ import annotations

import errno
import os
import select

from arcbox_agent.agent.containers.output.stdio import readable_bytes

#: The most that one piece of a pipe holds.
PIECE = 1 << 20


class CommandOutput:
    """`size`: bytes of the present piece; see Command.next."""

    __slots__ = ("fd", "name", "owed", "size")

    def __init__(self, name: str, fd: int) -> None:
        self.name = name
        self.fd = fd
        self.size = 0
        #: Bytes that the process itself left in it when it ended, and that are not read yet.
        self.owed = 0

    def read_into(self, room: memoryview) -> int | None:
        """Bytes read; 0: the end; None: there is nothing at present."""
        try:
            return os.readv(self.fd, [room])
        except BlockingIOError:
            return None
        except OSError as error:
            if error.errno == errno.EIO:
                return 0  # a terminal whose other side is closed
            raise

    def waiting(self) -> int | None:
        """Bytes that can be read from a pipe, PIECE at most; 0: its end; None: there is nothing at present."""
        size = readable_bytes(self.fd)
        if size:
            return min(size, PIECE)
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        for _, events in poll.poll(0):
            if events & select.POLLHUP and not events & select.POLLIN:
                return 0
        return None

    def note_owed(self) -> None:
        try:
            self.owed = readable_bytes(self.fd)
        except OSError:
            self.owed = 0  # a terminal that is closed

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
