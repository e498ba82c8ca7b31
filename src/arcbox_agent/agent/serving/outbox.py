"""The sending side of one connection: replies, streams, and bytes that go from a pipe to the socket.

The peer that does not read stops the sender (backpressure): what the kernel does not take
blocks the outbox, and `send` returns only when the kernel has everything.
"""

from __future__ import annotations

from asyncio import CancelledError, sleep
from os import SPLICE_F_MOVE, SPLICE_F_NONBLOCK, close, dup, splice
from socket import MSG_MORE

from arcbox_agent.agent.processes.pipes import readable_bytes
from arcbox_agent.errors import ConnectionLostError
from arcbox_agent.readiness import until_writable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from asyncio import AbstractEventLoop, Future, Transport
    from typing import Protocol

    class Owner(Protocol):
        """The connection, as its outbox knows it."""

        def count(self) -> None:
            """What the connection keeps in memory has changed."""

        def abort(self) -> None:
            """Nothing more can be sent in order."""

        def close_for(self, reason: str) -> None:
            """Log why the connection is closed."""


#: What is shorter is cheaper to copy than to refer to.
COPIED = 4 << 10

#: Seconds from one try to send to the next where there is no descriptor left to wait with.
LOOK_AGAIN = 0.02

#: Shared by all outboxes for which nobody waits, and never changed.
_NO_WAITERS: list[Future[None]] = []


class Outbox:
    """`owner`: filled in by the connection, which is made with its outbox.

    `blocked`: the kernel has not taken all.  `closed`: nothing more may be sent.

    `in_frame`: of a frame that goes past the transport, only a part may have been sent.
    """

    __slots__ = (
        "_counters",
        "_drained",
        "_loop",
        "_socket",
        "blocked",
        "closed",
        "in_frame",
        "owner",
        "transport",
    )

    def __init__(self, sock: socket.socket, loop: AbstractEventLoop, counters: dict[str, int]) -> None:
        self._socket = sock  # the transport closes it
        self._loop = loop
        self._counters = counters
        self._drained: list[Future[None]] = _NO_WAITERS  # what senders wait for
        self.owner: Owner | None = None
        self.transport: Transport | None = None
        self.blocked = False
        self.closed = False
        self.in_frame = False

    def write(self, data: bytes | bytearray) -> None:
        """Send without waiting."""
        self._counters["bytes_sent"] += len(data)
        # Small replies as bytes: uvloop makes a memoryview of anything else.
        self.transport.write(bytes(data) if len(data) < COPIED else data)  # type: ignore[union-attr]

    def unsent(self) -> int:
        """Bytes that the kernel has not taken."""
        if not self.blocked or self.transport is None:
            return 0
        return self.transport.get_write_buffer_size()

    def resume(self) -> bool:
        """The kernel has taken all; whether a sender waited for that."""
        self.blocked = False
        if not self._drained:
            return False
        for waiter in self._drained:
            if not waiter.done():
                waiter.set_result(None)
        self._drained.clear()
        return True

    def lose(self) -> None:
        """The transport is gone.  What a call started may outlive it, and must not keep the connection."""
        self.closed = True
        self.blocked = False
        self.owner = None

    def abort(self) -> None:
        """Close the connection at once: nothing more can be sent in order, or nobody is there to read it."""
        if self.owner is not None:
            self.owner.abort()

    async def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send; returns when the kernel has all of it, and the buffer may be reused.

        Cancelled while it waits, it aborts the connection: the transport still refers to the caller's buffer.
        """
        if self.closed:
            raise ConnectionLostError("the client is gone")
        self._counters["bytes_sent"] += len(data)
        self.transport.write(data)  # type: ignore[union-attr]
        if self.blocked:
            await self._drain()

    async def _drain(self) -> None:
        if self.owner is not None:
            self.owner.count()
        waiter = self._loop.create_future()
        if self._drained is _NO_WAITERS:
            self._drained = []
        self._drained.append(waiter)
        try:
            await waiter
        except CancelledError:
            self.abort()
            raise
        if self.closed:
            raise ConnectionLostError("the client is gone")

    async def send_from_pipe(self, head: bytes, pipe: int, size: int) -> None:
        """Send `head` and `size` bytes that lie ready in `pipe`, past the transport; returns when the kernel has all.

        Only the connection's one task sends, so nothing can come between the pieces.
        """
        if self.blocked:
            await self._drain()
        if self.closed:
            raise ConnectionLostError("the client is gone")
        self._counters["bytes_sent"] += len(head) + size
        rest = memoryview(head)
        self.in_frame = True
        try:
            while rest:
                try:
                    rest = rest[self._socket.send(rest, MSG_MORE) :]
                except BlockingIOError:
                    await self._writable()
            while size:
                try:
                    moved = splice(pipe, self._socket.fileno(), size, flags=SPLICE_F_MOVE | SPLICE_F_NONBLOCK)
                except BlockingIOError:
                    if readable_bytes(pipe) < size:
                        raise self._robbed() from None
                    await self._writable()
                    continue
                if not moved:
                    raise self._robbed()
                size -= moved
        except CancelledError:
            self.abort()
            raise
        except OSError as error:
            self.abort()
            raise ConnectionLostError("the client is gone") from error
        self.in_frame = False  # else nothing more is sent

    def _robbed(self) -> ConnectionLostError:
        """Bytes of a frame that has begun are gone: whoever writes into a pipe can read from it too, by /proc."""
        if self.owner is not None:
            self.owner.close_for("a command took back what it had written, connection closed")
        self.abort()
        return ConnectionLostError("the rest of a frame is gone")

    async def _writable(self) -> None:
        """Until the socket takes more.  On a duplicate: the transport's own is the transport's to watch."""
        try:
            duplicate = dup(self._socket.fileno())
        except OSError:
            if self._socket.fileno() < 0:
                raise
            # No descriptor is left: look again in a moment, until there is one.
            await sleep(LOOK_AGAIN)
            return
        try:
            await until_writable(duplicate)
        finally:
            close(duplicate)
