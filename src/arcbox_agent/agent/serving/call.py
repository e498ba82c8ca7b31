"""One request, as its handler sees it: who asks, how to answer in pieces, what follows the request."""

from __future__ import annotations

from arcbox_agent.wire import encode_message

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.agent.serving.inbox import Inputs
    from arcbox_agent.agent.serving.outbox import Outbox
    from arcbox_agent.wire import Message


class Call:
    """What a handler may know of its request besides the message, and how it streams.

    `trace_id`: None where the request came in V1.  `peer`: who asks, for logs: `uid 0 pid 123`,
    `cid 2`.  `allowed`: what the request's listener grants.

    `outbox`: for whole frames, encoded in the call's version and with its trace id.

    `open_ended`: a handler that may wait without end (a follow, a wait) sets it.  The call is
    then cancelled at once when the agent stops, instead of at the end of `shutdown_timeout`.

    `charged`: the bytes of memory that the call keeps, which count towards max_queued_total as
    its connection's: the request, and what `charge` adds.
    """

    __slots__ = (
        "_count",
        "allowed",
        "charged",
        "inputs",
        "open_ended",
        "outbox",
        "peer",
        "trace_id",
    )

    def __init__(
        self,
        outbox: Outbox,
        peer: str,
        allowed: frozenset[Access],
        trace_id: str | None,
        count: Callable[[], None],
    ) -> None:
        self.outbox = outbox
        self.peer = peer
        self.allowed = allowed
        self.trace_id = trace_id
        self._count = count  # told that `charged` has changed
        self.inputs: Inputs | None = None  # of a duplex call
        self.open_ended = False
        self.charged = 0

    @property
    def version(self) -> int:
        """The frame version of the request, and so of every reply to it."""
        return 1 if self.trace_id is None else 2

    def allows(self, access: Access) -> bool:
        """Whether the request's listener grants `access`."""
        return access in self.allowed

    def charge(self, size: int) -> None:
        """So many bytes more are kept for the reply.  May cost the connection, and so the call, its life."""
        self.charged += size
        self._count()

    async def send(self, message: Message) -> None:
        """Send one message of a streamed reply; waits while the peer is slow to read."""
        await self.outbox.send(encode_message(message, self.trace_id))

    async def receive(self) -> Message | None:
        """The next message of the route's `inputs`; None when the peer has ended its side.

        While nobody receives, they wait within max_pipelined and max_queued_bytes, as requests
        do; then the connection is not read.  DecodeError: one cannot be decoded.  FrameError:
        the stream broke behind the last one.  RuntimeError: the route has no inputs.
        """
        if self.inputs is None:
            raise RuntimeError("the route of this call has no inputs")
        return await self.inputs.receive()
