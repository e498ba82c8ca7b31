"""One connection to an agent: frames out, frames in, one call at a time.

    idle --send()--> a call --take(), more()--> ... --> idle
                        \\-- abort() --> closed

Frames are decoded on demand, so what has arrived stays in the decoder as bytes until a call
takes it.  Past HIGH_WATER of those the transport stops reading, which is backpressure for
the agent.
"""

from __future__ import annotations

import asyncio
import select
import struct
from typing import TYPE_CHECKING, Literal, cast

from arcbox_agent.client.transport import Address, open_socket
from arcbox_agent.errors import ConnectionLostError, FrameError, RequestError
from arcbox_agent.wire import FrameDecoder, MessageType, decode_error, encode_message

if TYPE_CHECKING:
    from arcbox_agent.client.calls import AgentKind
    from arcbox_agent.wire import Frame, Message

#: Bytes in the decoder above which the socket is not read.
HIGH_WATER = 256 * 1024

# For a socket on which nothing has happened poll() reports no event.
_ANY_EVENT = select.POLLIN | getattr(select, "POLLRDHUP", 0)


async def open_connection(address: Address, *, version: Literal[1, 2], max_frame_size: int) -> Connection:
    """Open a connection to the agent at `address`.  Raises ConnectError."""
    sock = await open_socket(address)
    try:
        _, connection = await asyncio.get_running_loop().create_connection(
            lambda: Connection(version, max_frame_size, sock.fileno()), sock=sock
        )
    except BaseException:
        sock.close()
        raise
    return connection


class Connection(asyncio.Protocol):
    """The protocol of one connection.  All of its methods run in the loop's thread."""

    def __init__(self, version: Literal[1, 2], max_frame_size: int, fileno: int) -> None:
        #: The kind of the agent at the other end; None until that is known.
        self.agent: AgentKind | None = None
        self._decoder = FrameDecoder(max_frame_size=max_frame_size, version=version)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._trace_id: str | None = None
        self._replied = False  # A reply to the present call has arrived.
        self._paused = False
        self._out_of_step = False
        self._lost: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._poll = select.poll()
        self._poll.register(fileno, _ANY_EVENT)

    # ---------------------------------------------------- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, not isinstance: uvloop's transports do not derive from asyncio's classes.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._decoder.feed(data)
        if self._waiter is not None:
            self._wake()
        elif self._decoder.buffered > HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._lost is None:
            self._lost = exc or EOFError("end of stream")
        self._transport = None
        self._wake()
        if not self._closed.done():
            self._closed.set_result(None)

    # ---------------------------------------------------- called by the pool

    def is_clean(self) -> bool:
        """Whether the connection is open, and every byte received belonged to a call."""
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self._decoder.buffered == 0
            and not self._out_of_step
        )

    def is_idle(self) -> bool:
        """Whether a new call can be sent.

        This asks the kernel too: the agent may have closed the connection without the loop
        having seen it, and a request sent then would be lost.
        """
        return self.is_clean() and not self._poll.poll(0)

    def is_alive(self) -> bool:
        """Whether the agent that accepted the connection is still there, as far as the kernel knows."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        return all(events == select.POLLIN for _, events in self._poll.poll(0))

    def abort(self, reason: str = "the call was given up") -> None:
        """Close the connection at once; a call that waits for a frame gets ConnectionLostError."""
        if self._lost is None:
            self._lost = ConnectionLostError(reason)
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    async def wait_closed(self) -> None:
        # Shielded, so that cancelling one waiter does not cancel the others.
        await asyncio.shield(self._closed)

    # ---------------------------------------------------- called by the call

    def send(self, frame: bytes, trace_id: str | None) -> None:
        """Send a request.  `trace_id`: the frame's trace id, which the replies must have too."""
        if self._transport is None:
            raise self._lost_error()
        self._trace_id = trace_id
        self._replied = False
        self._transport.write(frame)

    def add(self, message: Message) -> None:
        """Send a further message of the present call.  It does nothing once the connection is lost."""
        if self._transport is not None:
            self._transport.write(encode_message(message, self._trace_id))

    def take(self) -> Frame | None:
        """The next frame, or None if it has not arrived completely.

        Raises RequestError for an Error frame, and FrameError for a frame that does not
        answer the present call.
        """
        frame = self._decoder.next_frame()
        if frame is None:
            return None
        if frame.type == MessageType.ERROR:
            raise self._refusal(frame)
        if frame.trace_id != self._trace_id:
            raise FrameError(f"a reply with trace id {frame.trace_id!r}, to a call with {self._trace_id!r}")
        self._replied = True
        return frame

    async def more(self) -> None:
        """Wait until more bytes arrive, after `take` has returned None.  Raises ConnectionLostError."""
        if self._waiter is not None:
            raise RuntimeError("another task waits for a frame of this connection")
        if self._lost is not None:
            raise self._lost_error()
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    async def receive(self) -> Frame:
        """Wait for the next frame.  Raises what `take` and `more` raise."""
        while (frame := self.take()) is None:
            await self.more()
        return frame

    # --------------------------------------------------------------- private

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _lost_error(self) -> ConnectionLostError:
        lost = self._lost
        if isinstance(lost, ConnectionLostError):
            return ConnectionLostError(*lost.args)
        if self._decoder.buffered:
            reason = "the connection ended in the middle of a reply"
        elif self._replied:
            reason = "the connection ended before the last reply came"
        else:
            reason = "the connection ended before the reply came"
        error = ConnectionLostError(f"{reason}: {lost}" if isinstance(lost, OSError) else reason)
        error.__cause__ = lost
        return error

    def _refusal(self, frame: Frame) -> RequestError:
        payload, trace_id = frame.payload, frame.trace_id
        if trace_id != self._trace_id:
            # The error is about the whole connection, and no later frame answers a call.
            # An agent that has not yet seen a request sends it in V1: then the bytes parsed
            # as a trace id belong to the code.  Only the length of the text shows which
            # version it is.
            self._out_of_step = True
            if trace_id is not None and payload[4:8] != struct.pack(">i", len(payload) - 8):
                trace = trace_id.encode("utf-8", "surrogateescape")
                payload = struct.pack(">H", len(trace)) + trace + payload
        error = decode_error(payload)
        refusal = RequestError.from_reply(error.code, error.message)
        if trace_id and not self._out_of_step:
            refusal.add_note(f"trace id {trace_id}")
        return refusal
