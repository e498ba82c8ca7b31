"""One connection to an agent: frames out, frames in, one call at a time.

    idle --send()--> a call --take(), more()--> ... --> idle
                        \\-- abort() --> closed

Frames are decoded when they are asked for, so what has arrived and was not asked
for is bytes in the decoder; past HIGH_WATER of those the transport stops reading,
and the agent feels it.
"""

from __future__ import annotations

import asyncio
import select
import struct
from typing import TYPE_CHECKING, Literal, cast

from arcbox_agent.client.transport import Address, open_socket
from arcbox_agent.errors import ConnectionLostError, FrameError, RequestError
from arcbox_agent.wire import FrameDecoder, MessageType, decode_error

if TYPE_CHECKING:
    from arcbox_agent.client.calls import AgentKind
    from arcbox_agent.wire import Frame

#: Bytes received and not yet asked for, from which on the socket is not read.
HIGH_WATER = 256 * 1024

# What poll() reports of a socket on which nothing has happened is nothing.
_ANY_EVENT = select.POLLIN | getattr(select, "POLLRDHUP", 0)


async def open_connection(address: Address, *, version: Literal[1, 2], max_frame_size: int) -> Connection:
    """A connection to the agent at `address`.  Raises ConnectError."""
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
    """The protocol of one connection.  All its methods belong to the loop's thread."""

    def __init__(self, version: Literal[1, 2], max_frame_size: int, fileno: int) -> None:
        #: What is at its other end; None until that is known.
        self.agent: AgentKind | None = None
        self._decoder = FrameDecoder(max_frame_size=max_frame_size, version=version)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._trace_id: str | None = None
        self._replied = False  # a reply to the present call has come
        self._paused = False
        self._out_of_step = False
        self._lost: Exception | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._poll = select.poll()
        self._poll.register(fileno, _ANY_EVENT)

    # ---------------------------------------------------- called by the loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not by isinstance: uvloop's transports are none of asyncio's classes.
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
        """Whether it is connected, and every byte received belonged to a call."""
        transport = self._transport
        return (
            transport is not None
            and not transport.is_closing()
            and self._decoder.buffered == 0
            and not self._out_of_step
        )

    def is_idle(self) -> bool:
        """Whether a new call can be sent.

        Asks the kernel too: a close by the agent that the loop has not yet seen must
        not swallow a request.
        """
        return self.is_clean() and not self._poll.poll(0)

    def is_alive(self) -> bool:
        """Whether the agent that it was opened to is still there, as far as the kernel knows."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return False
        return all(events == select.POLLIN for _, events in self._poll.poll(0))

    def abort(self, reason: str = "the call was given up") -> None:
        """Close it at once; whoever waits for a frame gets ConnectionLostError."""
        if self._lost is None:
            self._lost = ConnectionLostError(reason)
        if self._transport is not None:
            self._transport.abort()
        self._wake()

    async def wait_closed(self) -> None:
        # A future of its own for each waiter: cancelling one is not for the others.
        await asyncio.shield(self._closed)

    # ---------------------------------------------------- called by the call

    def send(self, frame: bytes, trace_id: str | None) -> None:
        """Send a request.  `trace_id`: the one in the frame, which the replies must have."""
        if self._transport is None:
            raise self._lost_error()
        self._trace_id = trace_id
        self._replied = False
        self._transport.write(frame)

    def take(self) -> Frame | None:
        """The next frame, if all of it is here.

        Raises RequestError for an Error frame, FrameError for what is not a reply to
        the call that was sent.
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
        """Wait for more to arrive, where `take` had nothing.  Raises ConnectionLostError."""
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
        """The next frame.  Raises what `take` and `more` do."""
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
            # It is about the connection as a whole, and whatever follows it answers
            # no call.  Said before the agent had seen a request it is in V1, where
            # what was taken for a trace id belongs to the code; only the length of
            # the text shows which.
            self._out_of_step = True
            if trace_id is not None and payload[4:8] != struct.pack(">i", len(payload) - 8):
                trace = trace_id.encode("utf-8", "surrogateescape")
                payload = struct.pack(">H", len(trace)) + trace + payload
        error = decode_error(payload)
        refusal = RequestError.from_reply(error.code, error.message)
        if trace_id and not self._out_of_step:
            refusal.add_note(f"trace id {trace_id}")
        return refusal
