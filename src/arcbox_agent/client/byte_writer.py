"""The input of a stream: what was written and not yet accepted.

    write -> kept -> StreamInput -> StreamAccepted

It is accepted by offset.  So what was sent and not acknowledged when a connection was lost is sent again
over the next one, and reaches the other end once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from arcbox_agent import wire
from arcbox_agent.client.byte_reader import MOST
from arcbox_agent.errors import ConflictError, FrameError

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of one StreamInput.
PIECE = 64 * 1024

#: Bytes that are kept before `drain` waits, and before `write` refuses more.
HIGH_WATER = 256 * 1024
LIMIT = 16 * 1024 * 1024


class ByteWriter:
    """The input as a writer, like asyncio.StreamWriter."""

    def __init__(self) -> None:
        #: Input that was accepted; what is kept begins there.
        self.offset = 0
        self._kept = bytearray()
        self._sent = 0  # offset behind what was sent over this connection
        self._until = 0
        self._ending = False
        self._end_sent = False
        self._closed = False  # the agent takes no more
        self._broken = False  # and did not take all
        self._begun = False
        self._failure: BaseException | None = None
        self._send: Callable[[wire.Message], None] | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    # ------------------------------------------------- called as messages arrive

    def attached(self, accepted: wire.StreamAccepted, send: Callable[[wire.Message], None]) -> None:
        """A new connection takes the input.  Raises ConflictError if another client has written meanwhile."""
        offset = accepted.offset
        if offset > MOST:
            raise FrameError(f"the input is at {offset}, where no stream is so long")
        if not self._begun:
            self._begun = True
            self.offset = offset
        elif not self.offset <= offset <= self.offset + len(self._kept):
            raise ConflictError(f"the input is at {offset}, where this client has written up to {self.offset}")
        self._send = send
        self._until = 0
        self._end_sent = False
        del self._kept[: offset - self.offset]
        self.offset = self._sent = offset
        self.accepted(accepted)

    def detached(self) -> None:
        """The connection is lost; another may follow."""
        self._send = None

    def accepted(self, message: wire.StreamAccepted) -> None:
        """Raises FrameError for input that was never sent."""
        if not self.offset <= message.offset <= self._sent:
            raise FrameError(f"input was accepted up to {message.offset}, and sent from {self.offset} to {self._sent}")
        del self._kept[: message.offset - self.offset]
        self.offset = message.offset
        self._until = max(self._until, message.until)
        if message.closed:
            self._closed = True
            self._broken = bool(self._kept) or not self._ending
            self._kept.clear()
        self._push()
        self._wake()

    def failed(self, error: BaseException) -> None:
        """No connection follows; `drain` and `write` raise `error`."""
        if self._failure is None:
            self._failure = error
        self._send = None
        self._wake()

    # ------------------------------------------------------------ for the writer

    @property
    def closed(self) -> bool:
        """Whether the other end takes no more: nobody reads it, or it has its end."""
        return self._closed

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send bytes as the other end takes them; `drain` waits until it has taken most.

        Raises BrokenPipeError if nobody reads the input any more, and BufferError if more than 16 MiB wait already.
        """
        self._check()
        if self._ending:
            raise ValueError("the input has its end")
        if len(self._kept) > LIMIT:
            raise BufferError(f"{len(self._kept)} bytes wait for the other end to take them: drain() first")
        self._kept += data
        self._push()

    async def drain(self) -> None:
        """Wait until more may be written.  Raises BrokenPipeError if nobody reads the input any more."""
        self._check()
        while len(self._kept) > HIGH_WATER:
            await self._change()
            self._check()

    async def flush(self) -> None:
        """Wait until all was accepted.  Raises BrokenPipeError if it cannot be."""
        self._check()
        while self._kept:
            await self._change()
            self._check()

    def write_eof(self) -> None:
        """The input ends behind what was written."""
        if not self._ending:
            self._ending = True
            self._push()

    close = write_eof

    def is_closing(self) -> bool:
        return self._ending or self._closed or self._failure is not None

    async def wait_closed(self) -> None:
        """After `close`: wait until the other end has accepted the end, or takes no more."""
        while not self._closed and self._failure is None:
            await self._change()

    # ------------------------------------------------------------------- private

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self._broken:
            raise BrokenPipeError("nobody reads the input any more")

    def _push(self) -> None:
        send = self._send
        if send is None or self._closed or self._end_sent:
            return
        end = self.offset + len(self._kept)
        while self._sent < end:
            size = min(PIECE, end - self._sent, self._until - self._sent)
            if size <= 0:
                return
            at = self._sent - self.offset
            self._sent += size
            last = self._ending and self._sent == end
            self._end_sent = last
            data = bytes(memoryview(self._kept)[at : at + size])
            send(wire.StreamInput(offset=self._sent - size, data=data, close=last))
        if self._ending and not self._end_sent:
            self._end_sent = True
            send(wire.StreamInput(offset=end, close=True))

    async def _change(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiters.add(waiter)
        try:
            await waiter
        finally:
            self._waiters.discard(waiter)

    def _wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
