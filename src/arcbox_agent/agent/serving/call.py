"""One request, from its frame to its reply: the route, whether its peer may take it, the handler, the errors.

A Call is what the handler sees of it: who asks, how to answer in pieces, what follows the request.
Dispatch knows no connection and keeps nothing of a request.
"""

from __future__ import annotations

from types import CoroutineType

from arcbox_agent.agent.config.access import NEEDS
from arcbox_agent.agent.observe.log import Logger
from arcbox_agent.errors import (
    AgentFailedError,
    BadRequestError,
    DecodeError,
    ForbiddenError,
    FrameError,
    RequestError,
    TooManyItemsError,
)
from arcbox_agent.wire import encode_error, encode_message, message_class

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from typing import Any

    from arcbox_agent.agent.config.access import Access
    from arcbox_agent.agent.serving.inbox import Inputs
    from arcbox_agent.agent.serving.outbox import Outbox
    from arcbox_agent.agent.serving.route import Route
    from arcbox_agent.wire import Frame, Message

    Handling = Coroutine[Any, Any, Message | None]

log = Logger("connection")

#: The longest text of an Error, in characters.
ERROR_TEXT = 8 << 10

#: Bytes of a request above which it must be admitted.
LARGE = 64 << 10


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


class Dispatch:
    """`max_frame_size`: of a reply, in bytes.  `admit`: raises where a LARGE request, of so many bytes, must wait."""

    __slots__ = ("_admit", "_counters", "_max_frame_size", "routes")

    def __init__(
        self,
        routes: Mapping[int, Route],
        counters: dict[str, int],
        max_frame_size: int,
        admit: Callable[[int], None],
    ) -> None:
        self.routes = routes
        self._admit = admit
        self._counters = counters
        self._max_frame_size = max_frame_size

    def answer(self, frame: Frame, call: Call) -> bytes | Handling:
        """The reply as a frame, or the coroutine that will give it as a message."""
        try:
            route = self.routes.get(frame.type)
            if route is None:
                raise BadRequestError(_unroutable(frame.type))
            if route.access not in call.allowed:
                self._counters["requests_refused_mode"] += 1
                raise ForbiddenError(
                    f"this listener does not allow {NEEDS[route.access]}: its mode refuses {_name(frame.type)}"
                )
            if len(frame.payload) > LARGE:
                self._admit(len(frame.payload))
            request = route.request.decode(frame.payload) if route.request is not None else None
            reply = route.handler(request, call)
            if type(reply) is CoroutineType:
                call.charged = len(frame.payload)
                return reply
            return self.encode(reply, call.trace_id)
        except Exception as error:
            return self.error(error, call.trace_id)

    def encode(self, reply: Message, trace_id: str | None) -> bytes:
        """The reply as a frame.  AgentFailedError: it is larger than one may be."""
        out = encode_message(reply, trace_id)
        # The peer's limit is its own affair, but it is hardly above ours.
        if len(out) - 4 > self._max_frame_size:
            raise AgentFailedError(
                f"the reply is {len(out) - 4} bytes long, more than max_frame_size, {self._max_frame_size}: "
                "ask for less, or for a stream"
            )
        return out

    def error(self, error: Exception, trace_id: str | None) -> bytes:
        """The Error frame for what a handler, or the way to it, raised."""
        counters = self._counters
        counters["requests_failed"] += 1
        if isinstance(error, RequestError):
            code, text = error.code, error.message
        elif isinstance(error, TooManyItemsError):
            code, text = 400, f"invalid request: {error}"
        elif isinstance(error, DecodeError):
            code, text = 400, f"invalid request: failed to decode Protobuf message: {error}"
        elif isinstance(error, FrameError):  # what a call's input ended with
            code, text = 400, f"invalid frame: {error}"
        else:
            counters["handler_failures"] += 1
            log.exception("request failed", error)
            code, text = 500, f"internal error: {error!r}; the agent's log has the trace"
        if len(text) > ERROR_TEXT:
            # It repeats what the peer sent, which may be as long as a frame.
            text = f"{text[:ERROR_TEXT]}..."
        log.debug("request refused", code=code, reason=text)
        return encode_error(code, text, trace_id)


def _name(type: int) -> str:
    known = message_class(type)
    return known.__name__ if known is not None else f"0x{type:08X}"


def _unroutable(type: int) -> str:
    known = message_class(type)
    if known is None:
        return f"invalid request: unknown message type: 0x{type:08X}"
    if known.__name__.endswith("Request"):
        return f"invalid request: this agent does not serve {known.__name__}"
    return f"invalid request: unexpected message type: {known.__name__}"
