"""The line to a keeper: one connection, and one exchange on it at a time, from any thread."""

from __future__ import annotations

import array
import os
import select
import socket
import threading

from arcbox_agent.agent.config import budget

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_EACH = 8
_REPLY = 65536
#: Stands for a reply whose descriptors did not fit into the descriptor table.
CUT = b"cut"


class KeeperLine:
    """`path`: the keeper's socket.  Each method may wait for the keeper, KEEPER_REPLY at most: for a thread."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None

    @property
    def open(self) -> bool:
        """Whether there is a connection; its keeper may have ended.  It does not wait."""
        return self._socket is not None

    def is_there(self) -> bool:
        """Whether the keeper is still alive: descriptors sent to one that was killed are lost."""
        with self._lock:
            if self._socket is None:
                return False
            poll = select.poll()
            poll.register(self._socket, 0)  # POLLHUP is reported unasked
            if poll.poll(0):
                self._disconnect()
            return self._socket is not None

    def listen(self) -> int:
        """The listening socket of a new keeper.  OSError."""
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            try:
                os.unlink(self._path)
            except FileNotFoundError:
                pass
            listener.bind(self._path)
            os.chmod(self._path, 0o600)
            listener.listen(8)
        except BaseException:
            listener.close()
            raise
        return listener.detach()

    def connect(self) -> bool:
        """False: there is no keeper."""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        connection.settimeout(budget.KEEPER_REPLY)
        try:
            connection.connect(self._path)
        except OSError:
            connection.close()
            return False
        with self._lock:
            self._disconnect()
            self._socket = connection
        return True

    def disconnect(self) -> None:
        with self._lock:
            self._disconnect()

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def exchange(self, packet: bytes, fds: Sequence[int], borrowed: Sequence[int] = ()) -> tuple[bytes, list[int]]:
        """The reply, and the descriptors that came with it; b"": there is no keeper.  OSError: it did not answer.

        It closes `fds` in any case, and `borrowed` never.
        """
        try:
            with self._lock:
                return self._exchange(packet, [*fds, *borrowed])
        finally:
            for fd in fds:
                os.close(fd)

    def _exchange(self, packet: bytes, fds: Sequence[int]) -> tuple[bytes, list[int]]:
        try:
            connection = self._socket
            if connection is None:
                return b"", []
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
            connection.sendmsg([packet], rights)
            reply, ancillary, flags, _ = connection.recvmsg(
                _REPLY, socket.CMSG_SPACE(4 * MOST_EACH), socket.MSG_CMSG_CLOEXEC
            )
            if not reply:
                raise ConnectionResetError("the keeper is gone")
            came = array.array("i")
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    came.frombytes(data[: len(data) - len(data) % came.itemsize])
            if flags & socket.MSG_CTRUNC:
                # The descriptor table is full.  A part of the descriptors is of no use.
                for fd in came:
                    os.close(fd)
                return CUT, []
            return reply, list(came)
        except OSError:
            # The next exchange could take the late reply of this one for its own.
            self._disconnect()
            raise
