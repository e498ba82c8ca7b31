"""One request, as its handler sees it: who asked, and how to answer in pieces."""

from __future__ import annotations

from arcbox_agent.wire import encode_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.agent.serving.connection import Connection
    from arcbox_agent.wire import Message


class Call:
    """What a handler may know of its request besides the message, and how it streams.

    `open_ended`: a handler that may wait without end (a follow, a wait) sets it, and is
    then cancelled at once when the agent stops, instead of at the end of
    `shutdown_timeout`.

    `held`: the bytes of memory that it holds, which count towards max_queued_total as
    what its connection holds: the request, and what `hold` adds.
    """

    __slots__ = ("_connection", "held", "open_ended", "trace_id")

    def __init__(self, connection: Connection, trace_id: str | None) -> None:
        self._connection = connection
        self.trace_id = trace_id  # None: the request came in V1
        self.open_ended = False
        self.held = 0

    @property
    def version(self) -> int:
        """The frame version of the request, and so of every reply to it."""
        return 1 if self.trace_id is None else 2

    @property
    def peer(self) -> str:
        """Who asks, for logs: `uid 0 pid 123`, `cid 2`."""
        return self._connection.peer

    def allows(self, access: Access) -> bool:
        """Whether the request's listener grants `access`."""
        return access in self._connection.allowed

    def hold(self, size: int) -> None:
        """So many bytes more are kept for the reply.  May cost the connection, and so the call, its life."""
        self.held += size
        self._connection.count_held()

    async def send(self, message: Message) -> None:
        """Send one message of a streamed reply; waits while the peer is slow to read."""
        await self._connection.send(encode_message(message, self.trace_id))

    async def send_bytes(self, frames: bytes | bytearray | memoryview) -> None:
        """Send whole frames, encoded in the call's version and with its trace id.

        When it returns, all of it is in the kernel and the buffer may be reused.  When it
        is cancelled while it waits, that cannot be promised, so the connection is aborted.
        """
        await self._connection.send(frames)

    async def send_from_pipe(self, head: bytes, pipe: int, size: int) -> None:
        """Send a frame whose last `size` bytes lie ready in a pipe, and stay in the kernel.

        When it is cancelled half way the connection is aborted, as with send_bytes.
        """
        await self._connection.send_from_pipe(head, pipe, size)
